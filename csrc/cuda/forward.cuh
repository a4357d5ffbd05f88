// The forward pass on a GPU, chunk by chunk: a product of all steps' inputs, then the recurrence in the plan's regime.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/gemm.h"
#include "cuda/run.cuh"
#include "cuda/workspace.h"

namespace fastrnn::cuda {

template <class Cell, class S>
void step_forward(const Context& context, const ForwardChunk<S>& chunk, const ForwardBuffers<S>& buffers) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size;
  const bool projected = bool(p.weights.hr);
  for (int64_t walked = chunk.first; walked < chunk.first + chunk.steps; ++walked) {
    multiply<S>(context, N, Cell::kGates * H, R, dense<S>(buffers.entering, R), p.weights.hh.transposed(), buffers.gh);
    for_each(context, N * H,
             ForwardCell<Cell, S>{chunk, walked, buffers.gh, projected ? buffers.output : buffers.entering, projected});
    if (!projected) continue;
    multiply<S>(context, N, R, H, dense<S>(buffers.output, H), p.weights.hr.transposed(), buffers.product);
    for_each(context, N * R, Project<S>{chunk, walked, buffers.product, buffers.entering});
  }
}

template <class Cell, class S>
void forward(const ScanParams<S>& p, const Plan& plan, void* workspace, const Context& context) {
  const int64_t N = p.schedule.N, T = p.schedule.T, H = p.hidden_size, R = p.output_size, I = p.input_size;
  Arena arena(workspace);
  const auto buffers = ForwardBuffers<S>::template take<Cell>(arena, p, plan);
  for_each(context, N * R, BeginForward<S>{p, p.h_0, p.reset_h, R, buffers.h});
  if (Cell::kCellStates > 0) for_each(context, N * H, BeginForward<S>{p, p.c_0, p.reset_c, H, buffers.c});
  if (plan.regime == Regime::kStepwise) for_each(context, N * R, Write<S>{buffers.h, R, {buffers.entering, R, 1}});
  for (int64_t first = 0; first < T && N > 0; first += plan.steps) {
    const Span at = span(p, plan, first);
    const ForwardChunk<S> chunk{{p, at.first, at.steps, at.first_time, buffers.h, buffers.c}, buffers.gx};
    const S* x = input_rows<S>(context, chunk, at, buffers.x);
    multiply<S>(context, at.rows, Cell::kGates * H, I, dense(x, I), p.weights.ih.transposed(), buffers.gx);
    if (plan.regime == Regime::kStepwise) {
      step_forward<Cell>(context, chunk, buffers);
    } else if constexpr (!std::is_same_v<S, double>) {
      with_precision<S>(context.tf32, [&]<Precision kPrecision>() {
        if (plan.regime == Regime::kBlockResident)
          run_block(context, block_forward<Cell, S, kPrecision>, chunk, plan);
        else
          run_grid(context, grid_kernel<Cell, S, kPrecision>(plan), chunk, plan, buffers.exchange);
      });
    }
  }
  for_each(context, N * R, Write<S>{buffers.h, R, p.h_n});
  if (Cell::kCellStates > 0) for_each(context, N * H, Write<S>{buffers.c, H, p.c_n});
}

}  // namespace fastrnn::cuda
