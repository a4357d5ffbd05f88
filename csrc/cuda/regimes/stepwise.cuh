// Stepwise: one product and one cell kernel per step, for scans that the resident regimes cannot run. Every regime also
// uses this file's work outside the recurrence: the states at the ends of a walk, and what backward prepares and sums
// over all steps of a chunk at once.
//
// All but column_sums are one kernel, each(), which calls a function object with the index of each element.
#pragma once

#include "cuda/step.cuh"

namespace fastrnn::cuda {

template <class F>
__global__ void __launch_bounds__(256) each(int64_t count, const __grid_constant__ F f) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
    f(i);
}

// --- the ends of a walk ------------------------------------------------------------------------------

// The state that enters the first step: the initial one, or the reset state. Element [n, i] of [N, width].
template <class S>
struct BeginForward {
  ScanParams<S> scan;
  Matrix<const S> initial, reset_state;
  int64_t width;
  Accumulate<S>* state;

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t n = at / width, i = at % width;
    state[at] = cuda::at(scan.schedule.resets(scan.schedule.step(0), n) ? reset_state : initial, n, i);
  }
};

// Read converts a strided matrix to a dense one of the accumulation type, and Write converts it back.
template <class S>
struct Read {
  Matrix<const S> from;
  int64_t width;
  Accumulate<S>* to;
  FASTRNN_DEVICE void operator()(int64_t at) const { to[at] = cuda::at(from, at / width, at % width); }
};
template <class S>
struct Write {
  const Accumulate<S>* from;
  int64_t width;
  Matrix<S> to;
  FASTRNN_DEVICE void operator()(int64_t at) const { to(at / width, at % width) = store<S>(from[at]); }
};

// The gradient of the initial state; a reset at the first step takes it for the reset state instead.
template <class S>
struct FinishBackward {
  ScanParams<S> scan;
  const Accumulate<S>* d_state;  // [N, width]
  Accumulate<S>* d_reset;        // [N, width], null: not wanted
  int64_t width;
  Matrix<S> d_initial;

  FASTRNN_DEVICE void operator()(int64_t at) const {
    Accumulate<S> d = d_state[at];
    const int64_t n = at / width;
    if (scan.schedule.resets(scan.schedule.step(0), n)) take_reset<S>(d, d_reset, at);
    if (d_initial) d_initial(n, at % width) = store<S>(d);
  }
};

// --- a step ------------------------------------------------------------------------------------------

// Element [n, unit] of a step. `entering` receives the h that the next product multiplies; with a projection it
// receives o * tanh(c), which W_hr multiplies before Project stores h.
template <class Cell, class S>
struct ForwardCell {
  ForwardChunk<S> chunk;
  int64_t walked;
  const Accumulate<S>* gh;  // [N, G * H]
  S* entering;              // [N, H]
  bool projected;

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t H = chunk.scan.hidden_size, n = at / H, unit = at % H;
    ForwardInputs<Cell, S> inputs;
    inputs.fetch(chunk, walked, n, unit);
    Accumulate<S> products[Cell::kGates];
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) products[gate] = gh[(n * Cell::kGates + gate) * H + unit];
    UnitState<S> state;
    if (!projected) state.h = chunk.h[at];
    if constexpr (Cell::kCellStates > 0) state.c = chunk.c[at];
    advance(chunk, walked, n, unit, inputs, Bias<Cell, S>(chunk.scan, unit), products, state, projected);
    if (!projected) chunk.h[at] = state.h;
    if constexpr (Cell::kCellStates > 0) chunk.c[at] = state.c;
    entering[at] = store<S>(state.h);
  }
};

// Stores element [n, r] of h = W_hr (o tanh c), which is `product`.
template <class S>
struct Project {
  ForwardChunk<S> chunk;
  int64_t walked;
  const Accumulate<S>* product;  // [N, R]
  S* entering;                   // [N, R]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const ScanParams<S>& scan = chunk.scan;
    const int64_t R = scan.output_size, n = at / R, r = at % R, t = scan.schedule.step(walked);
    if (scan.schedule.runs(t, n)) {
      const S h = store<S>(product[at]);
      scan.y.data[row_of(scan, t, n) * R + r] = h;
      chunk.h[at] = product[at];
    }
    if (scan.schedule.resets(scan.schedule.next(t), n)) chunk.h[at] = cuda::at(scan.reset_h, n, r);
    entering[at] = store<S>(chunk.h[at]);
  }
};

// The gradient of h: chunk.h plus through_gh, the product of W_hh with d_gh of the following step. The sum skips
// samples that did not run that step: 0 * NaN would poison their gradient. Null: this chunk has no following step.
template <class S>
FASTRNN_DEVICE Accumulate<S> with_product(const BackwardChunk<S>& chunk, const Accumulate<S>* through_gh,
                                          int64_t walked, int64_t n, int64_t at) {
  const Schedule& schedule = chunk.scan.schedule;
  return through_gh && schedule.runs(schedule.step(walked + 1), n) ? chunk.h[at] + through_gh[at] : chunk.h[at];
}

// Element [n, unit] of a step. chunk.h gets the gradient without the part through gh, which with_product() adds.
template <class Cell, class S>
struct BackwardCell {
  BackwardChunk<S> chunk;
  int64_t walked;
  const Accumulate<S>* through_gh;  // [N, H]
  S* d_gh;                          // [N, G * H]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t H = chunk.scan.hidden_size, n = at / H, unit = at % H;
    BackwardInputs<Cell, S> inputs;
    inputs.fetch(chunk, walked, n, unit);
    const bool projected = chunk.d_output;
    UnitState<S> d_state;
    if (!projected) d_state.h = with_product(chunk, through_gh, walked, n, at);
    if constexpr (Cell::kCellStates > 0) d_state.c = chunk.c[at];
    Accumulate<S> products[Cell::kGates];
    retreat(chunk, walked, n, unit, inputs, d_state, products);
    if (!projected) chunk.h[at] = d_state.h;
    if constexpr (Cell::kCellStates > 0) chunk.c[at] = d_state.c;
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate)
      d_gh[(n * Cell::kGates + gate) * H + unit] = store<S>(products[gate]);
  }
};

// Element [n, r] of the gradient of a projected h. If the sample runs, all of it flows into the projection and chunk.h
// keeps 0.
template <class S>
struct ProjectBackward {
  BackwardChunk<S> chunk;
  int64_t walked;
  const Accumulate<S>* through_gh;  // [N, R]
  S* d_projected;                   // [steps * N, R]
  S* d_now;                         // [N, R]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const ScanParams<S>& scan = chunk.scan;
    const int64_t R = scan.output_size, n = at / R, r = at % R, t = scan.schedule.step(walked);
    Accumulate<S>& d = chunk.h[at];
    d = with_product(chunk, through_gh, walked, n, at);
    if (scan.schedule.resets(scan.schedule.next(t), n)) take_reset<S>(d, chunk.d_reset_h, at);
    S sum = store<S>(0);
    if (scan.schedule.runs(t, n)) {
      const Sequence<const S>& d_y = chunk.gradients.y;
      sum = store<S>(d + (d_y ? load<S>(d_y.data[row_of(scan, t, n) * R + r]) : Accumulate<S>(0)));
      d = 0;
    }
    d_projected[buffer_row(chunk, t, n) * R + r] = sum;
    d_now[at] = sum;
  }
};

// Element [n, r]. Completes chunk.h, the gradient of the state that enters the chunk, by the first step's product.
template <class S>
struct AddProduct {
  BackwardChunk<S> chunk;
  const Accumulate<S>* through_gh;  // [N, R]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    chunk.h[at] = with_product(chunk, through_gh, chunk.first - 1, at / chunk.scan.output_size, at);
  }
};

// --- over all steps of a chunk -------------------------------------------------------------------------

// Splits an element's index [walked step, n, column] into step, sample and column.
template <class S>
struct Place {
  int64_t t, n, column;
  int64_t row;  // of the chunk's buffers
  bool runs;

  FASTRNN_DEVICE Place(const Chunk<S>& chunk, int64_t at, int64_t width) {
    const Schedule& schedule = chunk.scan.schedule;
    column = at % width;
    n = at / width % schedule.N;
    t = schedule.step(chunk.first + at / width / schedule.N);
    row = buffer_row(chunk, t, n);
    runs = schedule.runs(t, n);
  }
};

// The state before each step, 0 where a sample does not run. Element [walked step, n, r].
template <class S>
struct PreviousStates {
  Chunk<S> chunk;
  S* to;  // [steps * N, R]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const ScanParams<S>& scan = chunk.scan;
    const int64_t R = scan.output_size;
    const Place<S> place(chunk, at, R);
    Accumulate<S> h = 0;
    const int64_t before = scan.schedule.previous(place.t);
    if (place.runs && scan.schedule.resets(place.t, place.n))
      h = cuda::at(scan.reset_h, place.n, place.column);
    else if (place.runs && scan.schedule.runs(before, place.n))
      h = load<S>(scan.y.data[row_of(scan, before, place.n) * R + place.column]);
    else if (place.runs)
      h = cuda::at(scan.h_0, place.n, place.column);
    to[place.row * R + place.column] = store<S>(h);
  }
};

// Copies x, with 0 where a sample does not run: NaN in padding would reach the gradient of W_ih as 0 * NaN. Element
// [walked step, n, i].
template <class S>
struct GatherInput {
  Chunk<S> chunk;
  S* to;  // [steps * N, I]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t I = chunk.scan.input_size;
    const Place<S> place(chunk, at, I);
    to[place.row * I + place.column] =
        place.runs ? chunk.scan.x.data[row_of(chunk.scan, place.t, place.n) * I + place.column] : store<S>(0);
  }
};

// Copies the gradient of x from the chunk's rows to a packed or jagged sequence. Element [walked step, n, i].
template <class S>
struct ScatterInputGradient {
  BackwardChunk<S> chunk;
  const S* from;  // [steps * N, I]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t I = chunk.scan.input_size;
    const Place<S> place(chunk, at, I);
    if (place.runs)
      chunk.gradients.x.data[row_of(chunk.scan, place.t, place.n) * I + place.column] =
          from[place.row * I + place.column];
  }
};

// Recomputes the gates that forward did not save. Element [walked step, n, unit].
template <class Cell, class S>
struct RecomputeGates {
  Chunk<S> chunk;
  const Accumulate<S>* gx;  // [steps * N, G * H]
  const Accumulate<S>* gh;  // [steps * N, G * H]
  S* gates;                 // [steps * N, kSaved * H]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t H = chunk.scan.hidden_size;
    const Place<S> place(chunk, at, H);
    // mutant: padded gates
    if (!place.runs) return;
    using V = RealOf<S>;
    const Bias<Cell, S> bias(chunk.scan, place.column);
    std::array<V, Cell::kGates> x, h;
#pragma unroll
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      const int64_t index = (place.row * Cell::kGates + gate) * H + place.column;
      x[gate] = gx[index] + bias.ih[gate];
      h[gate] = gh[index] + bias.hh[gate];
    }
    State<V> state{Accumulate<S>(0), {Accumulate<S>(0)}};  // no gate depends on it
    std::array<V, Cell::kSaved> saved;
    Cell::forward(x, h, state, saved);
#pragma unroll
    for (int i = 0; i < Cell::kSaved; ++i)
      gates[(place.row * Cell::kSaved + i) * H + place.column] = store<S>(saved[i].x);
  }
};

// Recomputes o * tanh(c), since y holds only its projection. Element [walked step, n, unit].
template <class Cell, class S>
struct Outputs {
  BackwardChunk<S> chunk;
  S* to;  // [steps * N, H]

  FASTRNN_DEVICE void operator()(int64_t at) const {
    const int64_t H = chunk.scan.hidden_size;
    const Place<S> place(chunk, at, H);
    Accumulate<S> h = 0;
    if (place.runs) {
      using V = RealOf<S>;
      const S* gates = saved_gates<Cell>(chunk, place.t, place.n);
      std::array<V, Cell::kSaved> saved;
#pragma unroll
      for (int i = 0; i < Cell::kSaved; ++i) saved[i] = load<S>(gates[i * H + place.column]);
      h = Cell::output(saved, V(chunk.scan.cells.data[row_of(chunk.scan, place.t, place.n) * H + place.column])).x;
    }
    to[place.row * H + place.column] = store<S>(h);
  }
};

// Adds rows group, group + groups, ... of a matrix to sums[group]. A block sums 32 columns with 8 threads each; the
// first of the 8 adds up their sums, always in the same order, so results are reproducible.
constexpr int kSumRows = 8;

template <class S>
__global__ void __launch_bounds__(kSumRows* kLanes)
    column_sums(const S* from, int64_t rows, int64_t columns, int64_t groups, Accumulate<S>* sums) {
  __shared__ Accumulate<S> parts[kSumRows][kLanes];
  const int64_t column = int64_t{blockIdx.y} * kLanes + threadIdx.x, group = blockIdx.x;
  Accumulate<S> sum = 0;
  if (column < columns)
    for (int64_t row = group + threadIdx.y * groups; row < rows; row += kSumRows * groups)
      sum += load<S>(from[row * columns + column]);
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  for (int i = 1; i < kSumRows; ++i) sum += parts[i][threadIdx.x];
  sums[group * columns + column] += sum;
}

}  // namespace fastrnn::cuda
