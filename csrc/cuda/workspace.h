// Scratch memory of a scan on a GPU: which buffers a pass takes, and how many rows each of them holds.
//
// The same code counts the bytes and hands the pieces out, so that both agree.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/plan.h"
#include "dtypes.h"
#include "scan.h"

namespace fastrnn::cuda {

// Hands out pieces of a workspace. If the workspace is null, it only counts their bytes.
class Arena {
 public:
  explicit Arena(void* workspace) : base_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(int64_t count, bool wanted = true) {
    if (!wanted || count == 0) return nullptr;
    char* piece = base_ + bytes_;
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return base_ ? reinterpret_cast<T*>(piece) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* base_;
  int64_t bytes_ = 0;
};

// Whether x is packed or jagged: its offsets are on the device, so the host does not know where a step's rows lie.
template <class S>
bool scattered(const ScanParams<S>& p) {
  return p.x.step_start || p.x.sample_start;
}
// Rows of a chunk's buffers. A chunk's steps are limited, so scratch memory does not grow with the sequence.
template <class S>
int64_t chunk_rows(const ScanParams<S>& p, const Plan& plan) {
  return std::min(plan.steps, p.schedule.T) * p.schedule.N;
}

struct MatrixSize {
  int64_t rows, columns;
};

// A bias is a column.
template <class Cell, class S>
PerWeight<MatrixSize> weight_sizes(const ScanParams<S>& p) {
  const int64_t gates = Cell::kGates * p.hidden_size, I = p.input_size, H = p.hidden_size, R = p.output_size;
  return {.ih = {gates, I}, .hh = {gates, R}, .bias_ih = {gates, 1}, .bias_hh = {gates, 1}, .hr = {R, H}};
}

template <class S>
struct ForwardBuffers {
  using A = Accumulate<S>;
  A *h, *c, *gx, *gh, *product;
  S *x, *entering, *output;
  uint32_t* exchange;

  template <class Cell>
  static ForwardBuffers take(Arena& arena, const ScanParams<S>& p, const Plan& plan) {
    const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
    const bool stepwise = plan.regime == Regime::kStepwise, projected = bool(p.weights.hr);
    ForwardBuffers buffers;
    buffers.h = arena.take<A>(N * R);
    buffers.c = arena.take<A>(N * H, Cell::kCellStates > 0);
    buffers.x = arena.take<S>(chunk_rows(p, plan) * p.input_size, scattered(p));
    buffers.gx = arena.take<A>(chunk_rows(p, plan) * gates);
    buffers.gh = arena.take<A>(N * gates, stepwise);
    buffers.entering = arena.take<S>(N * R, stepwise);
    buffers.output = arena.take<S>(N * H, projected);
    buffers.product = arena.take<A>(N * R, projected);
    buffers.exchange = arena.take<uint32_t>(plan.exchange_bytes / 4 * plan.steps);
    return buffers;
  }
};

template <class S>
struct BackwardBuffers {
  using A = Accumulate<S>;
  A *h, *c, *d_reset_h, *d_reset_c, *gx, *gh, *d_output, *through_gh;
  S *h_previous, *x, *d_x, *gates, *d_gx, *d_gh, *d_gh_now, *d_projected, *d_now, *outputs;
  PerWeight<A*> weights;  // gradients summed over chunks, group after group
  uint32_t* exchange;

  template <class Cell>
  static BackwardBuffers take(Arena& arena, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan) {
    const int64_t N = p.schedule.N, I = p.input_size, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
    const int64_t rows = chunk_rows(p, plan);
    const bool stepwise = plan.regime == Regime::kStepwise, projected = bool(p.weights.hr);
    const bool recompute = Cell::kSaved > 0 && !p.gates;
    BackwardBuffers buffers;
    buffers.h = arena.take<A>(N * R);
    buffers.c = arena.take<A>(N * H, Cell::kCellStates > 0);
    buffers.d_reset_h = arena.take<A>(N * R, bool(d.reset_h));
    buffers.d_reset_c = arena.take<A>(N * H, bool(d.reset_c));
    for_each_weight([&](A*& sum, const auto& gradient,
                        MatrixSize size) { sum = arena.take<A>(d.groups * size.rows * size.columns, bool(gradient)); },
                    buffers.weights, d.weights, weight_sizes<Cell>(p));
    buffers.gx = arena.take<A>(rows * gates, recompute);
    buffers.gh = arena.take<A>(rows * gates, recompute);
    buffers.gates = arena.take<S>(rows * Cell::kSaved * H, recompute);
    buffers.h_previous = arena.take<S>(rows * R, recompute || Cell::kReadsPreviousH || d.weights.hh);
    buffers.x =
        arena.take<S>(rows * I, (d.weights.ih && p.schedule.lengths) || ((d.weights.ih || recompute) && scattered(p)));
    buffers.d_x = arena.take<S>(rows * I, d.x && scattered(p));
    buffers.d_gx = arena.take<S>(rows * gates);
    buffers.d_gh = Cell::kSplitGateGradients ? arena.take<S>(rows * gates) : buffers.d_gx;
    buffers.d_gh_now = arena.take<S>(N * gates, stepwise);
    buffers.d_projected = arena.take<S>(rows * R, projected);
    buffers.d_now = arena.take<S>(N * R, projected);
    // mutant: outputs follow
    buffers.d_output = arena.take<A>(N * H, projected);
    buffers.through_gh = arena.take<A>(N * R, stepwise);
    buffers.outputs = arena.take<S>(rows * H, bool(d.weights.hr));
    buffers.exchange = arena.take<uint32_t>(plan.exchange_bytes / 4 * plan.steps);
    return buffers;
  }
};

}  // namespace fastrnn::cuda
