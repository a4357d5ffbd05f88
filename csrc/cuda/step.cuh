// One unit of one sample at one step: what every regime reads, computes and writes. The regimes differ only in how they
// multiply by W_hh.
//
// Each step applies the reset of the step that follows it, so the state that it leaves is ready to be sent and
// multiplied. A sample that does not run at a step keeps its state.
#pragma once

#include <array>

#include "cells/cell.h"
#include "cuda/tiles.cuh"
#include "scan.h"

namespace fastrnn::cuda {

// A chunk is a range of consecutive steps, with buffers for these steps alone. Whatever the sequence's layout, a buffer
// has a row for each step and sample: row (t - first_time) * N + n.
template <class S>
struct Chunk {
  using A = Accumulate<S>;

  ScanParams<S> scan;
  int64_t first = 0, steps = 0;  // counted in walking order
  int64_t first_time = 0;        // the smallest t of these steps

  // The state (in the backward pass its gradient): a launch reads the one that enters the chunk, and leaves the one
  // that enters the next chunk.
  A* h = nullptr;  // [N, R]
  A* c = nullptr;  // [N, H]
};

template <class S>
struct ForwardChunk : Chunk<S> {
  const Accumulate<S>* gx = nullptr;  // [steps * N, G * H], input products without bias
};

template <class S>
struct BackwardChunk : Chunk<S> {
  ScanGradients<S> gradients;
  const S* h_previous = nullptr;  // [steps * N, R], the state before each step
  const S* gates = nullptr;       // [steps * N, kSaved * H], recomputed; null: read scan.gates, which forward saved
  S* d_gx = nullptr;              // [steps * N, G * H]
  S* d_gh = nullptr;              // [steps * N, G * H], d_gx itself unless the cell splits them
  Accumulate<S>* d_reset_h = nullptr;  // [N, R], null: not wanted
  Accumulate<S>* d_reset_c = nullptr;  // [N, H]
  // With a projection, the gradient of o * tanh(c): the product of W_hr with h's gradient. Null without a projection.
  const Accumulate<S>* d_output = nullptr;  // [N, H]
};

// --- where rows lie ---------------------------------------------------------------------------------

// Row of a sequence whose rows follow each other without a gap.
template <class S>
FASTRNN_FN int64_t row_of(const ScanParams<S>& scan, int64_t t, int64_t n) {
  if (scan.x.step_start) return scan.x.step_start[t] + n;
  if (scan.x.sample_start) return scan.x.sample_start[n] + t;
  return t * scan.schedule.N + n;
}

// Row of a chunk's buffers.
template <class S>
FASTRNN_FN int64_t buffer_row(const Chunk<S>& chunk, int64_t t, int64_t n) {
  return (t - chunk.first_time) * chunk.scan.schedule.N + n;
}

// What the cell saved at a step: [kSaved * H].
template <class Cell, class S>
FASTRNN_FN const S* saved_gates(const BackwardChunk<S>& chunk, int64_t t, int64_t n) {
  const int64_t width = Cell::kSaved * chunk.scan.hidden_size;
  return chunk.gates ? chunk.gates + buffer_row(chunk, t, n) * width
                     : chunk.scan.gates.data + row_of(chunk.scan, t, n) * width;
}

// 0 of what there is not.
template <class S>
FASTRNN_DEVICE Accumulate<S> at(const Matrix<const S>& matrix, int64_t i, int64_t j) {
  return matrix ? load<S>(matrix(i, j)) : Accumulate<S>(0);
}

template <class S>
FASTRNN_DEVICE Accumulate<S> at(const Vector<const S>& vector, int64_t i) {
  return vector ? load<S>(vector[i]) : Accumulate<S>(0);
}

// --- forward -----------------------------------------------------------------------------------------

// The biases of one unit, in registers; 0 in a layer without biases.
template <class Cell, class S>
struct Bias {
  Accumulate<S> ih[Cell::kGates] = {}, hh[Cell::kGates] = {};

  FASTRNN_DEVICE Bias(const ScanParams<S>& scan, int64_t unit) {
    if (unit >= scan.hidden_size) return;
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      ih[gate] = at(scan.weights.bias_ih, gate * scan.hidden_size + unit);
      hh[gate] = at(scan.weights.bias_hh, gate * scan.hidden_size + unit);
    }
  }
};

template <class S>
struct UnitState {
  Accumulate<S> h = 0, c = 0;
};

// enter() loads a unit's state from the chunk, 0 past the last sample or unit; leave() stores it for the next chunk.
template <class Cell, class S>
FASTRNN_DEVICE UnitState<S> enter(const Chunk<S>& chunk, int64_t n, int64_t unit) {
  const int64_t H = chunk.scan.hidden_size;
  if (n >= chunk.scan.schedule.N || unit >= H) return {};
  // mutant: without c
  return {chunk.h[n * H + unit], Cell::kCellStates > 0 ? chunk.c[n * H + unit] : 0};
}
template <class Cell, class S>
FASTRNN_DEVICE void leave(const Chunk<S>& chunk, int64_t n, int64_t unit, const UnitState<S>& state) {
  const int64_t H = chunk.scan.hidden_size;
  if (n >= chunk.scan.schedule.N || unit >= H) return;
  chunk.h[n * H + unit] = state.h;
  if constexpr (Cell::kCellStates > 0) chunk.c[n * H + unit] = state.c;
}

// What a step reads from global memory. The resident kernels fetch it a step ahead, which hides the latency.
template <class Cell, class S>
struct ForwardInputs {
  Accumulate<S> gx[Cell::kGates];
  bool runs, resets_next;

  FASTRNN_DEVICE void fetch(const ForwardChunk<S>& chunk, int64_t walked, int64_t n, int64_t unit) {
    const ScanParams<S>& scan = chunk.scan;
    runs = resets_next = false;
    if (walked >= chunk.first + chunk.steps || n >= scan.schedule.N || unit >= scan.hidden_size) return;
    const int64_t t = scan.schedule.step(walked);
    runs = scan.schedule.runs(t, n);
    resets_next = scan.schedule.resets(scan.schedule.next(t), n);
    if (!runs) return;
    const Accumulate<S>* row = chunk.gx + buffer_row(chunk, t, n) * Cell::kGates * scan.hidden_size;
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) gx[gate] = row[gate * scan.hidden_size + unit];
  }
};

// Advances one unit by one step. gh comes without bias. With a projection, state.h becomes o * tanh(c) instead of h,
// and the caller projects it.
template <class Cell, class S>
FASTRNN_DEVICE void advance(const ForwardChunk<S>& chunk, int64_t walked, int64_t n, int64_t unit,
                            const ForwardInputs<Cell, S>& inputs, const Bias<Cell, S>& bias,
                            const Accumulate<S> (&gh)[Cell::kGates], UnitState<S>& state, bool projected = false) {
  using V = RealOf<S>;
  constexpr int kGates = Cell::kGates;
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  if (inputs.runs) {
    std::array<V, kGates> x, h;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      x[gate] = inputs.gx[gate] + bias.ih[gate];
      h[gate] = gh[gate] + bias.hh[gate];
    }
    State<V> next{state.h, {state.c}};
    std::array<V, Cell::kSaved> saved;
    Cell::forward(x, h, next, saved);
    state = {next.h.x, Cell::kCellStates > 0 ? next.c[0].x : Accumulate<S>(0)};
    const int64_t row = row_of(scan, scan.schedule.step(walked), n);
    if (!projected) scan.y.data[row * H + unit] = store<S>(state.h);
    if constexpr (Cell::kSaved > 0)
      if (scan.gates)
#pragma unroll
        for (int i = 0; i < Cell::kSaved; ++i)
          scan.gates.data[(row * Cell::kSaved + i) * H + unit] = store<S>(saved[i].x);
    if constexpr (Cell::kCellStates > 0)
      if (scan.cells) scan.cells.data[row * H + unit] = state.c;
  }
  if (inputs.resets_next) {
    if (!projected) state.h = at(scan.reset_h, n, unit);
    if constexpr (Cell::kCellStates > 0) state.c = at(scan.reset_c, n, unit);
  }
}

// --- backward ----------------------------------------------------------------------------------------

template <class Cell, class S>
struct BackwardInputs {
  using A = Accumulate<S>;
  A saved[Cell::kSaved > 0 ? Cell::kSaved : 1];
  UnitState<S> previous, next;
  A d_y, d_c;
  bool runs, resets_next;

  FASTRNN_DEVICE void fetch(const BackwardChunk<S>& chunk, int64_t walked, int64_t n, int64_t unit) {
    const ScanParams<S>& scan = chunk.scan;
    const int64_t H = scan.hidden_size;
    // mutant: padded backward
    runs = resets_next = false;
    if (walked < chunk.first || n >= scan.schedule.N || unit >= H) return;
    const int64_t t = scan.schedule.step(walked);
    runs = scan.schedule.runs(t, n);
    resets_next = scan.schedule.resets(scan.schedule.next(t), n);
    if (!runs) return;
    const int64_t row = row_of(scan, t, n);
    if constexpr (Cell::kSaved > 0) {
      const S* gates = saved_gates<Cell>(chunk, t, n);
#pragma unroll
      for (int i = 0; i < Cell::kSaved; ++i) saved[i] = load<S>(gates[i * H + unit]);
    }
    if constexpr (Cell::kBackwardReadsPreviousH)
      previous.h = load<S>(chunk.h_previous[buffer_row(chunk, t, n) * H + unit]);
    if constexpr (Cell::kReadsNextH) next.h = load<S>(scan.y.data[row * H + unit]);
    if constexpr (Cell::kCellStates > 0) {
      previous.c = previous_c(scan, t, n, unit);
      next.c = scan.cells.data[row * H + unit];
      d_c = chunk.gradients.cells ? chunk.gradients.cells.data[row * H + unit] : A(0);
    }
    d_y = chunk.gradients.y && !chunk.d_output ? load<S>(chunk.gradients.y.data[row * H + unit]) : A(0);
  }

 private:
  FASTRNN_DEVICE static A previous_c(const ScanParams<S>& scan, int64_t t, int64_t n, int64_t unit) {
    if (scan.schedule.resets(t, n)) return at(scan.reset_c, n, unit);
    const int64_t before = scan.schedule.previous(t);
    if (scan.schedule.runs(before, n)) return scan.cells.data[row_of(scan, before, n) * scan.hidden_size + unit];
    return at(scan.c_0, n, unit);
  }
};

// Moves the gradient of a state that a reset replaced to the reset state, if that gradient is wanted.
template <class S>
FASTRNN_DEVICE void take_reset(Accumulate<S>& d, Accumulate<S>* d_reset, int64_t index) {
  if (d_reset) d_reset[index] += d;
  d = 0;
}

// Takes one unit back by one step. d_state is on entry the gradient of the state that entered the following step, and
// on return that of the state that entered this step, without the part that flows through gh. d_gh is the gradient of
// gh, 0 if the sample does not run; the caller multiplies it by W_hh.
template <class Cell, class S>
FASTRNN_DEVICE void retreat(const BackwardChunk<S>& chunk, int64_t walked, int64_t n, int64_t unit,
                            const BackwardInputs<Cell, S>& inputs, UnitState<S>& d_state,
                            Accumulate<S> (&d_gh)[Cell::kGates]) {
  using V = RealOf<S>;
  using A = Accumulate<S>;
  constexpr int kGates = Cell::kGates;
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  const bool projected = chunk.d_output;  // h is then R wide, and d_output stands for its gradient
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) d_gh[gate] = 0;
  if (n >= scan.schedule.N || unit >= H) return;
  if (inputs.resets_next) {
    if (!projected) take_reset<S>(d_state.h, chunk.d_reset_h, n * H + unit);
    if constexpr (Cell::kCellStates > 0) take_reset<S>(d_state.c, chunk.d_reset_c, n * H + unit);
  }
  std::array<V, kGates> d_x, d_h;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) d_x[gate] = d_h[gate] = A(0);
  if (inputs.runs) {
    std::array<V, Cell::kSaved> saved;
#pragma unroll
    for (int i = 0; i < Cell::kSaved; ++i) saved[i] = inputs.saved[i];
    State<V> d{projected ? chunk.d_output[n * H + unit] : d_state.h + inputs.d_y,
               {Cell::kCellStates > 0 ? d_state.c + inputs.d_c : A(0)}};
    Cell::backward(saved, State<V>{inputs.previous.h, {inputs.previous.c}}, State<V>{inputs.next.h, {inputs.next.c}}, d,
                   d_x, d_h);
    d_state = {d.h.x, Cell::kCellStates > 0 ? d.c[0].x : A(0)};
  }
  const int64_t row = buffer_row(chunk, scan.schedule.step(walked), n) * kGates;
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) {
    d_gh[gate] = d_h[gate].x;
    chunk.d_gx[(row + gate) * H + unit] = store<S>(d_x[gate].x);
    if constexpr (Cell::kSplitGateGradients) chunk.d_gh[(row + gate) * H + unit] = store<S>(d_h[gate].x);
  }
}

}  // namespace fastrnn::cuda
