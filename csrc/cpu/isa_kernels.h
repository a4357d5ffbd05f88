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
bool has_few_units(const CellTraits& cell, const ScanParams<S>& params) {
  return LaneScan<S>::unsuited_units(cell, params).empty();
}

#if !defined(FASTRNN_PAIRS)

template <class S>
void ScanKernels<S>::forward(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  const CellKernels<S>& kernels = cell_kernels<S>(cell);
  if constexpr (!kDual<S>)
    if (has_few_units(kernels.cell, params)) {
      ScanParams<S> unpacked = params;
      if (params.packed) {
        unpacked.weights = PlainLayer<S>(kernels.cell, params).weights();
        unpacked.packed = nullptr;
      }
      if (LaneScan<S>::unsuited(kernels.cell, unpacked).empty()) return LaneForward<S>(unpacked, kernels, team).run();
      return ForwardScan<S>(unpacked, kernels, team).run();
    }
  ForwardScan<S>(params, kernels, team).run();
}

template <class S>
int64_t ScanKernels<S>::packed_bytes(std::string_view cell, const ScanParams<S>& params) {
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  return has_few_units(traits, params) ? PlainLayer<S>(traits, params).bytes() : PackedLayer<S>(traits, params).bytes();
}

template <class S>
void ScanKernels<S>::pack(std::string_view cell, const ScanParams<S>& params, char* out) {
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  if (has_few_units(traits, params))
    PlainLayer<S>(traits, params).write(out);
  else
    PackedLayer<S>(traits, params).write(out);
}

template <class S>
void ScanKernels<S>::backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients,
                              const Team& team) {
  const CellKernels<S>& kernels = cell_kernels<S>(cell);
  if constexpr (!kDual<S>)
    if (LaneScan<S>::unsuited(kernels.cell, params).empty() && (params.gates || kernels.cell.saved == 0) &&
        gradients.groups == 1)
      return LaneBackward<S>(params, gradients, kernels, team).run();
  BackwardScan<S>(params, gradients, kernels, team).run();
}

template <class S>
cpu::Choice ScanKernels<S>::choice(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  cpu::Choice choice = Scan<S>{params, traits, team}.choice();
  choice.not_in_lanes = LaneScan<S>::unsuited(traits, params);
  return choice;
}

#else

using Unpaired = Kernels<BFloat16>;
const Unpaired& unpaired = std::get<Unpaired>(cpu::FASTRNN_PAIRS.own);

// Few units gain nothing from pairs, and cells that are compiled later have no kernels for them. All their batches use
// the unpaired kernels, so that a sample's bits do not depend on whether its batch runs in lanes. Gradients of groups
// sum over the steps of a sample, which lie apart.
inline bool is_paired(std::string_view cell, const ScanParams<BFloat16>& params) {
  const bool is_built_in = Cells::dispatch(cell, []<class Cell>() {});
  return is_built_in && !has_few_units(cell_kernels<BFloat16>(cell).cell, params);
}

template <class S>
void forward(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  if constexpr (std::is_same_v<S, BFloat16>)
    if (!is_paired(cell, params)) return unpaired.forward(cell, params, team);
  ForwardScan<S>(params, cell_kernels<S>(cell), team).run();
}

template <class S>
void backward(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients, const Team& team) {
  if constexpr (std::is_same_v<S, BFloat16>)
    if (!is_paired(cell, params) || gradients.groups > 1) return unpaired.backward(cell, params, gradients, team);
  BackwardScan<S>(params, gradients, cell_kernels<S>(cell), team).run();
}

template <class S>
cpu::Choice choice(std::string_view cell, const ScanParams<S>& params, const Team& team) {
  if constexpr (std::is_same_v<S, BFloat16>)
    if (!is_paired(cell, params)) return unpaired.choice(cell, params, team);
  const CellTraits& traits = cell_kernels<S>(cell).cell;
  cpu::Choice choice = Scan<S>{params, traits, team}.choice();
  choice.not_in_lanes = LaneScan<S>::unsuited(traits, params);
  return choice;
}

inline int64_t packed_bytes(std::string_view cell, const ScanParams<BFloat16>& params) {
  return is_paired(cell, params) ? PackedLayer<BFloat16>(cell_kernels<BFloat16>(cell).cell, params).bytes()
                                 : unpaired.packed_bytes(cell, params);
}

inline void pack(std::string_view cell, const ScanParams<BFloat16>& params, char* out) {
  if (is_paired(cell, params))
    PackedLayer<BFloat16>(cell_kernels<BFloat16>(cell).cell, params).write(out);
  else
    unpaired.pack(cell, params, out);
}

// The table of a set that differs from the one that FASTRNN_PAIRS names in products of bfloat16 alone. Who asks for
// rounded products makes sure that the cell is built in and has no few units, and packs no weights for them.
constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name,
          runs_here,
          kMaskKernels,
          {{},
           {},
           {forward<BFloat16>, backward<BFloat16>, choice<BFloat16>, packed_bytes, pack},
           {},
           {},
           {},
           {forward<RoundedFloat>, backward<RoundedFloat>, choice<RoundedFloat>, nullptr, nullptr}},
          &cpu::FASTRNN_PAIRS};
}

#endif
}  // namespace fastrnn::FASTRNN_ISA
