// Implements launch.h for all cells and precisions. Each launch_*.cu includes it and instantiates one storage type.
//
// Only the recurrence differs by regime. Everything before and after it is a product over all steps of a chunk, which
// cuBLAS does, or one kernel over all their elements.
#pragma once

#include <string>
#include <string_view>

#include "cuda/backward.cuh"
#include "cuda/forward.cuh"
#include "cuda/launch.h"
#include "cuda/workspace.h"
#include "dispatch.h"

namespace fastrnn::cuda {

template <class F>
void with_cell(std::string_view cell, F&& f) {
  if (!Cells::dispatch(cell, f)) throw LaunchError("unknown cell '" + std::string(cell) + "'");
}

template <class S>
Plan plan_for(std::string_view cell, const ScanParams<S>& p, Direction direction, const DeviceLimits& device, bool tf32,
              std::string_view forced) {
  Plan chosen;
  with_cell(cell, [&]<class Cell>() {
    with_precision<S>(tf32, [&]<Precision kPrecision>() {
      const Sizes sizes{.gates = Cell::kGates,
                        .T = p.schedule.T,
                        .N = p.schedule.N,
                        .H = p.hidden_size,
                        .projected = bool(p.weights.hr),
                        .saved = Cell::kSaved,
                        .has_cell_state = Cell::kCellStates > 0};
      DeviceLimits limits = device;
      // Below sm_80 the resident kernels compile to empty bodies, and a newer GPU runs such code too.
      const int version = code_version(reinterpret_cast<const void*>(column_sums<S>));
      if (version < 80) limits.compute_capability = version;
      chosen = plan(sizes, kPrecision, direction, limits, forced);
      if constexpr (kPrecision != Precision::kDouble)
        if (chosen.step_us >= 0 && chosen.regime == Regime::kGridResident) {
          // A device that is shared may hold fewer blocks than it has multiprocessors.
          const int64_t blocks =
              blocks_at_once(grid_kernel<Cell, S, kPrecision>(chosen), chosen.threads, chosen.shared_bytes);
          if (blocks < chosen.blocks()) {
            const Refusal refusal{Reason::kTooFewAtOnce, chosen.blocks(), blocks};
            limits.cooperative = false;
            chosen = plan(sizes, kPrecision, direction, limits, forced);
            chosen.refusal(Regime::kGridResident) = refusal;
          }
        }
      if (chosen.step_us < 0) {
        const std::string reasons = refusals(chosen);
        throw LaunchError(reasons.empty() ? "no such regime" : reasons);
      }
    });
  });
  return chosen;
}

template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& p, const Plan& plan) {
  Arena arena(nullptr);
  with_cell(cell, [&]<class Cell>() { ForwardBuffers<S>::template take<Cell>(arena, p, plan); });
  return arena.bytes();
}
template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan) {
  Arena arena(nullptr);
  with_cell(cell, [&]<class Cell>() { BackwardBuffers<S>::template take<Cell>(arena, p, d, plan); });
  return arena.bytes();
}

template <class S>
void launch(std::string_view cell, const ScanParams<S>& p, const Plan& plan, void* workspace, const Context& context) {
  with_cell(cell, [&]<class Cell>() { forward<Cell, S>(p, plan, workspace, context); });
}
template <class S>
void launch(std::string_view cell, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan, void* workspace,
            const Context& context) {
  with_cell(cell, [&]<class Cell>() { backward<Cell, S>(p, d, plan, workspace, context); });
}

// Instantiates launch.h's functions for one storage type.
#define FASTRNN_INSTANTIATE_LAUNCH(S)                                                                                \
  template Plan plan_for<S>(std::string_view, const ScanParams<S>&, Direction, const DeviceLimits&, bool,            \
                            std::string_view);                                                                       \
  template int64_t workspace_bytes<S>(std::string_view, const ScanParams<S>&, const Plan&);                          \
  template int64_t workspace_bytes<S>(std::string_view, const ScanParams<S>&, const ScanGradients<S>&, const Plan&); \
  template void launch<S>(std::string_view, const ScanParams<S>&, const Plan&, void*, const Context&);               \
  template void launch<S>(std::string_view, const ScanParams<S>&, const ScanGradients<S>&, const Plan&, void*,       \
                          const Context&);

}  // namespace fastrnn::cuda
