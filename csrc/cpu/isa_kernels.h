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
#include "cpu/micro_kernel.h"

// What is built on that.
#include "cpu/gemm.h"
#include "cpu/lanes_kernel.h"
#include "cpu/scan_kernel.h"

namespace fastrnn::FASTRNN_ISA {
#if !defined(FASTRNN_PAIRS)

template <class S>
void forward(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, S>::suits(params))
      LaneForward<Cell, S>(params, team).run();
    else
      ForwardScan<Cell, S>(params, team).run();
  });
}

template <class S>
void backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, S>::suits(params) && (params.gates || Cell::kSaved == 0))
      LaneBackward<Cell, S>(params, gradients, team).run();
    else
      BackwardScan<Cell, S>(params, gradients, team).run();
  });
}

template <class S>
constexpr Kernels<S> kKernels{forward<S>, backward<S>};

constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name, runs_here, kKernels<float>, kKernels<double>, kKernels<BFloat16>, kKernels<Half>};
}

#else

// Few units gain nothing from pairs. All their batches go one way, for a sample's bits to be those it has in a batch
// that runs in lanes.
inline void forward(std::string_view cell, const ScanParams<BFloat16>& params, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, BFloat16>::suits_units(params))
      cpu::kAvx512.bfloat16.forward(cell, params, team);
    else
      ForwardScan<Cell, BFloat16>(params, team).run();
  });
}

inline void backward(std::string_view cell, const ScanParams<BFloat16>& params,
                     const ScanGradients<BFloat16>& gradients, const Team& team) {
  Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, BFloat16>::suits_units(params))
      cpu::kAvx512.bfloat16.backward(cell, params, gradients, team);
    else
      BackwardScan<Cell, BFloat16>(params, gradients, team).run();
  });
}

// Where only products of bfloat16 differ from kAvx512.
constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name, runs_here, {}, {}, {forward, backward}, {}, &cpu::kAvx512};
}

#endif
}  // namespace fastrnn::FASTRNN_ISA
