// The scans of one instruction set. Every cpu/isa_<set>_<type>.cpp includes this and instantiates ScanKernels of its
// types, so that a build has work for several cores.
#pragma once

#include "cpu/backward_scan.h"
#include "cpu/cell_registry.h"
#include "cpu/cell_update.h"
#include "cpu/forward_scan.h"
#include "cpu/isa_scans.h"
#include "cpu/packed_layer.h"
#include "cpu/samples_in_lanes.h"
#include "dispatch.h"
#if defined(FASTRNN_PAIRS)
#include "cpu/dropout_kernel.h"  // the scans and the table of such a set share a file
#endif

namespace fastrnn::FASTRNN_ISA {

// The caller has made sure that there are such kernels.
template <class S>
const CellKernels<S>& cell_kernels(std::string_view cell) {
  const CellKernels<S>* kernels = nullptr;
  if (!Cells::dispatch(cell, [&]<class Cell>() { kernels = &kCellKernels<Cell, S>; }))
    kernels = static_cast<const CellKernels<S>*>(cpu::find_kernels(cell, kInstructionSet, cpu::kTypeName<S>));
  return *kernels;
}

// Tells whether a batch may run in lanes. Such layers keep their packed weights as they lie, for all batches.
template <class S>
bool has_few_units(std::string_view cell, const ScanParams<S>& params) {
  bool few = false;
  if constexpr (!kDual<S>)
    Cells::dispatch(cell, [&]<class Cell>() { few = LaneScan<Cell, S>::unsuited_units(params).empty(); });
  return few;
}

#if !defined(FASTRNN_PAIRS)

// Derivatives of gradients all take one way, whatever the number of units.
template <class S>
void ScanKernels<S>::forward(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  const CellKernels<S>& kernels = cell_kernels<S>(cell);
  if (!has_few_units(cell, params)) return ForwardScan<S>(params, kernels, team).run();
  ScanParams<S> plain = params;
  if (params.packed) {
    plain.weights = PlainLayer<S>(kernels.cell, params).weights();
    plain.packed = nullptr;
  }
  if constexpr (!kDual<S>)
    Cells::dispatch(cell, [&]<class Cell>() {
      if (LaneScan<Cell, S>::unsuited(plain).empty())
        LaneForward<Cell, S>(plain, team).run();
      else
        ForwardScan<S>(plain, kernels, team).run();
    });
}

template <class S>
int64_t ScanKernels<S>::packed_bytes(std::string_view cell, const ScanParams<S>& params) {
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  return has_few_units(cell, params) ? PlainLayer<S>(traits, params).bytes() : PackedLayer<S>(traits, params).bytes();
}

template <class S>
void ScanKernels<S>::pack(std::string_view cell, const ScanParams<S>& params, char* out) {
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  if (has_few_units(cell, params))
    PlainLayer<S>(traits, params).write(out);
  else
    PackedLayer<S>(traits, params).write(out);
}

template <class S>
void ScanKernels<S>::backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients,
                              const Team& team) {
  bool in_lanes = false;
  if constexpr (!kDual<S>)
    Cells::dispatch(cell, [&]<class Cell>() {
      in_lanes =
          LaneScan<Cell, S>::unsuited(params).empty() && (params.gates || Cell::kSaved == 0) && gradients.groups == 1;
      if (in_lanes) LaneBackward<Cell, S>(params, gradients, team).run();
    });
  if (!in_lanes) BackwardScan<S>(params, gradients, cell_kernels<S>(cell), team).run();
}

template <class S>
cpu::Choice ScanKernels<S>::choice(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  cpu::Choice choice = Scan<S>{params, cell_kernels<S>(cell).cell, team}.choice();
  choice.not_in_lanes = "the cell is compiled for units in lanes alone";
  if constexpr (kDual<S>)
    choice.not_in_lanes = "derivatives of gradients all take one way";
  else
    Cells::dispatch(cell, [&]<class Cell>() { choice.not_in_lanes = LaneScan<Cell, S>::unsuited(params); });
  return choice;
}

#else

using Unpaired = Kernels<BFloat16>;
const Unpaired& unpaired = std::get<Unpaired>(cpu::kAvx512.own);

// Few units gain nothing from pairs, and cells that are compiled later have no kernels for them. All their batches use
// the unpaired kernels, so that a sample's bits do not depend on whether its batch runs in lanes. Gradients of groups
// sum over the steps of a sample, which lie apart.
inline void forward(std::string_view cell, const ScanParams<BFloat16>& params, const Team& team) {
  const bool paired = Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, BFloat16>::unsuited_units(params).empty())
      unpaired.forward(cell, params, team);
    else
      ForwardScan<BFloat16>(params, kCellKernels<Cell, BFloat16>, team).run();
  });
  if (!paired) unpaired.forward(cell, params, team);
}

inline void backward(std::string_view cell, const ScanParams<BFloat16>& params,
                     const ScanGradients<BFloat16>& gradients, const Team& team) {
  const bool paired = Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, BFloat16>::unsuited_units(params).empty() || gradients.groups > 1)
      unpaired.backward(cell, params, gradients, team);
    else
      BackwardScan<BFloat16>(params, gradients, kCellKernels<Cell, BFloat16>, team).run();
  });
  if (!paired) unpaired.backward(cell, params, gradients, team);
}

inline cpu::Choice choice(std::string_view cell, const ScanParams<BFloat16>& params, const Team& team) {
  cpu::Choice choice;
  const bool paired = Cells::dispatch(cell, [&]<class Cell>() {
    if (LaneScan<Cell, BFloat16>::unsuited_units(params).empty())
      choice = unpaired.choice(cell, params, team);
    else
      choice = Scan<BFloat16>{params, kCellKernels<Cell, BFloat16>.cell, team}.choice();
    choice.not_in_lanes = LaneScan<Cell, BFloat16>::unsuited(params);
  });
  return paired ? choice : unpaired.choice(cell, params, team);
}

inline int64_t packed_bytes(std::string_view cell, const ScanParams<BFloat16>& params) {
  return has_few_units(cell, params) ? unpaired.packed_bytes(cell, params)
                                     : PackedLayer<BFloat16>(cell_kernels<BFloat16>(cell).cell, params).bytes();
}

inline void pack(std::string_view cell, const ScanParams<BFloat16>& params, char* out) {
  if (has_few_units(cell, params))
    unpaired.pack(cell, params, out);
  else
    PackedLayer<BFloat16>(cell_kernels<BFloat16>(cell).cell, params).write(out);
}

// The table of a set that differs from kAvx512 in products of bfloat16 alone.
constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name,
          runs_here,
          kMaskKernels,
          {{}, {}, {forward, backward, choice, packed_bytes, pack}, {}, {}, {}},
          &cpu::kAvx512};
}

#endif
}  // namespace fastrnn::FASTRNN_ISA
