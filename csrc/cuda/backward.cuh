// The backward pass on a GPU, chunk by chunk from the last one: the recurrence, then products of all its steps.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/gemm.h"
#include "cuda/run.cuh"
#include "cuda/workspace.h"

namespace fastrnn::cuda {

template <class Cell, class S>
void step_backward(const Context& context, BackwardChunk<S> chunk, const BackwardBuffers<S>& buffers) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size;
  const bool projected = bool(p.weights.hr);
  chunk.d_output = buffers.d_output;
  const Accumulate<S>* through_gh = nullptr;
  for (int64_t walked = chunk.first + chunk.steps - 1; walked >= chunk.first; --walked) {
    if (projected) {
      for_each(context, N * R, ProjectBackward<S>{chunk, walked, through_gh, buffers.d_projected, buffers.d_now});
      multiply<S>(context, N, H, R, dense<S>(buffers.d_now, R), p.weights.hr, buffers.d_output);
    }
    for_each(context, N * H, BackwardCell<Cell, S>{chunk, walked, through_gh, buffers.d_gh_now});
    multiply<S>(context, N, R, Cell::kGates * H, dense<S>(buffers.d_gh_now, Cell::kGates * H), p.weights.hh,
                buffers.through_gh);
    through_gh = buffers.through_gh;
  }
  for_each(context, N * R, AddProduct<S>{chunk, through_gh});
}

// Adds a chunk's part of the weights' gradients: products of the gates' gradients with x and h.
template <class Cell, class S>
void add_weight_gradients(const Context& context, const BackwardChunk<S>& chunk, const ScanGradients<S>& d,
                          const BackwardBuffers<S>& buffers, const Span& at, const S* x) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t I = p.input_size, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
  const int64_t groups = d.groups, rows = at.rows / groups;
  // Sample n is in group n % groups: a group's rows lie `groups` apart, across all steps.
  const auto add = [&](const S* left, int64_t M, const S* right, int64_t N, Accumulate<S>* sums) {
    for (int64_t group = 0; group < groups; ++group)
      multiply<S>(context, M, N, rows, dense(left, M).every(groups, group).transposed(),
                  dense(right, N).every(groups, group), sums + group * M * N, true);
  };
  const auto add_rows = [&](const S* from, Accumulate<S>* sums) {
    const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(divide_up(gates, kLanes)));
    column_sums<S><<<grid, dim3(kLanes, kSumRows), 0, context.stream>>>(from, at.rows, gates, groups, sums);
    check(cudaGetLastError(), "summing a bias's gradient");
  };
  if (d.weights.ih) add(buffers.d_gx, gates, x, I, buffers.weights.ih);
  if (d.weights.hh) add(buffers.d_gh, gates, buffers.h_previous, R, buffers.weights.hh);
  if (d.weights.bias_ih) add_rows(buffers.d_gx, buffers.weights.bias_ih);
  if (d.weights.bias_hh) add_rows(buffers.d_gh, buffers.weights.bias_hh);
  if constexpr (Cell::kCellStates > 0)
    if (d.weights.hr) {
      for_each(context, at.rows * H, Outputs<Cell, S>{chunk, buffers.outputs});
      add(buffers.d_projected, R, buffers.outputs, H, buffers.weights.hr);
    }
}

template <class Cell, class S>
void backward(const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan, void* workspace,
              const Context& context) {
  using A = Accumulate<S>;
  const int64_t N = p.schedule.N, T = p.schedule.T, H = p.hidden_size, R = p.output_size, I = p.input_size;
  const int64_t gates = Cell::kGates * H;
  Arena arena(workspace);
  const auto buffers = BackwardBuffers<S>::template take<Cell>(arena, p, d, plan);
  const auto clear = [&](auto* piece, int64_t count) {
    if (piece) check(cudaMemsetAsync(piece, 0, count * sizeof *piece, context.stream), "clearing a sum");
  };
  clear(buffers.d_reset_h, N * R);
  clear(buffers.d_reset_c, N * H);
  const PerWeight<MatrixSize> sizes = weight_sizes<Cell>(p);
  for_each_weight([&](A* sum, MatrixSize size) { clear(sum, d.groups * size.rows * size.columns); }, buffers.weights,
                  sizes);
  for_each(context, N * R, Read<S>{d.h_n, R, buffers.h});
  if (Cell::kCellStates > 0) for_each(context, N * H, Read<S>{d.c_n, H, buffers.c});
  const int64_t chunks = N > 0 ? divide_up(T, plan.steps) : 0;
  for (int64_t i = chunks - 1; i >= 0; --i) {
    const Span at = span(p, plan, i * plan.steps);
    BackwardChunk<S> chunk{{p, at.first, at.steps, at.first_time, buffers.h, buffers.c}, d};
    chunk.h_previous = buffers.h_previous;
    chunk.gates = buffers.gates;
    chunk.d_gx = buffers.d_gx;
    chunk.d_gh = buffers.d_gh;
    chunk.d_reset_h = buffers.d_reset_h;
    chunk.d_reset_c = buffers.d_reset_c;
    const S* x = input_rows<S>(context, chunk, at, buffers.x);
    if (buffers.h_previous) for_each(context, at.rows * R, PreviousStates<S>{chunk, buffers.h_previous});
    if (buffers.gates) {
      multiply<S>(context, at.rows, gates, I, dense(x, I), p.weights.ih.transposed(), buffers.gx);
      multiply<S>(context, at.rows, gates, R, dense<S>(buffers.h_previous, R), p.weights.hh.transposed(), buffers.gh);
      for_each(context, at.rows * H, RecomputeGates<Cell, S>{chunk, buffers.gx, buffers.gh, buffers.gates});
    }
    if (plan.regime == Regime::kStepwise) {
      step_backward<Cell>(context, chunk, buffers);
    } else if constexpr (!std::is_same_v<S, double>) {
      with_precision<S>(context.tf32, [&]<Precision kPrecision>() {
        if (plan.regime == Regime::kBlockResident)
          run_block(context, block_backward<Cell, S, kPrecision>, chunk, plan);
        else
          run_grid(context, grid_kernel<Cell, S, kPrecision>(plan), chunk, plan, buffers.exchange);
      });
    }
    if (d.x)
      multiply<S>(context, at.rows, I, gates, dense<S>(buffers.d_gx, gates), p.weights.ih,
                  scattered(p) ? buffers.d_x : rows_of(d.x, at, I));
    if (d.x && scattered(p)) for_each(context, at.rows * I, ScatterInputGradient<S>{chunk, buffers.d_x});
    if (d.weights.any()) add_weight_gradients<Cell>(context, chunk, d, buffers, at, x);
  }
  for_each(context, N * R, FinishBackward<S>{p, buffers.h, buffers.d_reset_h, R, d.h_0});
  if (Cell::kCellStates > 0) for_each(context, N * H, FinishBackward<S>{p, buffers.c, buffers.d_reset_c, H, d.c_0});
  const auto write = [&](const A* from, int64_t rows, int64_t columns, Matrix<S> to) {
    if (to) for_each(context, rows * columns, Write<S>{from, columns, to});
  };
  write(buffers.d_reset_h, N, R, d.reset_h);
  write(buffers.d_reset_c, N, H, d.reset_c);
  const auto write_weight = [&](const A* sum, MatrixSize size, const auto& gradient) {
    write(sum, d.groups * size.rows, size.columns, as_matrix(gradient));
  };
  for_each_weight(write_weight, buffers.weights, sizes, d.weights);
}

}  // namespace fastrnn::cuda
