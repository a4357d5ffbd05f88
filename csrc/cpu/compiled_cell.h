// What a file with users' cells includes, after the header that names the instruction set. The library that it is
// compiled to holds the cells' side of the seam (cpu/cell_kernels.h), and no engine.
#pragma once

#include <cstddef>
#include <iterator>

#include "cells/functions.h"
#include "cpu/cell_registry.h"
#include "cpu/cell_update.h"

namespace fastrnn::FASTRNN_ISA {

// FASTRNN_CELL_LAYOUT is a string for the headers' contents: with others, a cell would take other objects for the
// engine's.
template <class Cell, class S>
constexpr cpu::CompiledCell compiled_cell() {
  return {FASTRNN_CELL_LAYOUT,      Cell::kName.data(), kInstructionSet.data(),
          cpu::kTypeName<S>.data(), kFacts<Cell>,       &kCellKernels<Cell, S>};
}

}  // namespace fastrnn::FASTRNN_ISA

// The function through which the library is read, of some compiled_cell<Cell, S>() in the namespace fastrnn.
#define FASTRNN_COMPILED_CELLS(...)                                                                          \
  extern "C" __attribute__((visibility("default"))) const fastrnn::cpu::CompiledCell* fastrnn_compiled_cell( \
      std::size_t index) {                                                                                   \
    using namespace fastrnn;                                                                                 \
    using namespace fastrnn::FASTRNN_ISA;                                                                    \
    static constexpr cpu::CompiledCell kCells[] = {__VA_ARGS__};                                             \
    return index < std::size(kCells) ? &kCells[index] : nullptr;                                             \
  }

#define FASTRNN_COMPILED_CELL(Cell, S) FASTRNN_COMPILED_CELLS((compiled_cell<Cell, S>()))
