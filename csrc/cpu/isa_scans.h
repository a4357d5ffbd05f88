// Declares what isa_table.h takes the address of and isa_kernels.h defines.
#pragma once

#include <string_view>

#include "cpu/isa.h"

namespace fastrnn::FASTRNN_ISA {
using cpu::Buffer;
using cpu::Grid;
using cpu::Kernels;
using cpu::Range;
using cpu::ScanParams;
using cpu::Schedule;
using cpu::Team;
using cpu::Tuning;
using cpu::WeightType;

#define FASTRNN_STRING(x) #x
#define FASTRNN_NAME(x) FASTRNN_STRING(x)
constexpr std::string_view kInstructionSet = FASTRNN_NAME(FASTRNN_ISA);

// The scans of one storage type. Their definitions stand outside the class, because an inline member would be compiled
// wherever its address is taken.
template <class S>
struct ScanKernels {
  static void forward(std::string_view cell, const ScanParams<S>& params, const Team& team);
  static void backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients,
                       const Team& team);
  static cpu::Choice choice(std::string_view cell, const ScanParams<S>& params, const Team& team);
  static int64_t packed_bytes(std::string_view cell, const ScanParams<S>& params);
  static void pack(std::string_view cell, const ScanParams<S>& params, char* out);
};

}  // namespace fastrnn::FASTRNN_ISA
