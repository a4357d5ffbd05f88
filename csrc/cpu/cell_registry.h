// Cells that were compiled after this library: their facts by name, and their kernels by instruction set and type.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "arguments.h"
#include "dtypes.h"

namespace fastrnn::cpu {

// What a compiled library tells of a cell. The layout names the headers that it was compiled with.
struct CompiledCell {
  const char* layout;
  const char* name;
  const char* instruction_set;
  const char* type;
  CellFacts facts;
  const void* kernels;  // CellKernels<S> of the instruction set
};

// Its function of this name returns one after the other, and null at the end.
constexpr const char* kCompiledCellFunction = "fastrnn_compiled_cell";
using CompiledCellFunction = const CompiledCell*(std::size_t index);

template <class S>
constexpr std::string_view kTypeName = {};
template <>
inline constexpr std::string_view kTypeName<float> = "float";
template <>
inline constexpr std::string_view kTypeName<double> = "double";
template <>
inline constexpr std::string_view kTypeName<BFloat16> = "BFloat16";
template <>
inline constexpr std::string_view kTypeName<Half> = "Half";
template <>
inline constexpr std::string_view kTypeName<RoundedFloat> = "RoundedFloat";
template <>
inline constexpr std::string_view kTypeName<Dual<float>> = "Dual<float>";
template <>
inline constexpr std::string_view kTypeName<Dual<double>> = "Dual<double>";

// Makes a cell known. Returns false if the name already stands for other facts.
bool register_cell(std::string_view name, const CellFacts& facts);

// Returns null for an unknown name. What is found stays: nothing is ever removed.
const CellFacts* find_cell(std::string_view name);

// Registers the cell, and its kernels if there are none yet. Returns false as register_cell does; kernels that can be
// projected are also those of a cell that is not.
bool register_kernels(const CompiledCell& cell);

// Returns null where the cell has no kernels of that instruction set and type.
const void* find_kernels(std::string_view cell, std::string_view instruction_set, std::string_view type);

}  // namespace fastrnn::cpu
