// The kernels of one instruction set, in the order they build on each other. Included by cpu/isa_*.cpp alone.
#pragma once

namespace fastrnn::FASTRNN_ISA {
using cpu::Buffer;
using cpu::Grid;
using cpu::Kernels;
using cpu::Range;
using cpu::Team;
}  // namespace fastrnn::FASTRNN_ISA

#include "cpu/vec.h"

// The cells, compiled for this instruction set's vectors.
#include "dispatch.h"

// What is built on both.
#include "cpu/gemm.h"
#include "cpu/scan_kernel.h"

namespace fastrnn::FASTRNN_ISA {
constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name, runs_here, kKernels<float>, kKernels<double>, kKernels<BFloat16>, kKernels<Half>};
}
}  // namespace fastrnn::FASTRNN_ISA
