// ScanParams: one layer, one direction, one call. THE boundary: everything below it knows no torch.
//
// A scan walks T steps over N rows. Rows are samples sorted by length, longest first, so the rows still running at a
// step are always a prefix of the batch: a padded batch with lengths, a packed one and a plain one are the same walk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dtypes.h"

namespace fastrnn {

// A strided matrix view. Views take any strides, also 0 (an expanded tensor) and transposed ones.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 0;

  FASTRNN_FN T* row(int64_t i) const { return data + i * row_stride; }
  FASTRNN_FN T& operator()(int64_t i, int64_t j) const { return data[i * row_stride + j * col_stride]; }
  Matrix transposed() const { return {data, col_stride, row_stride}; }
  // Rows first, first + step, ...
  Matrix every(int64_t step, int64_t first) const {
    return data ? Matrix{row(first), row_stride * step, col_stride} : Matrix{};
  }
  FASTRNN_FN explicit operator bool() const { return data != nullptr; }
};

template <class T>
struct Vector {
  T* data = nullptr;
  int64_t stride = 0;

  FASTRNN_FN T& operator[](int64_t i) const { return data[i * stride]; }
  FASTRNN_FN explicit operator bool() const { return data != nullptr; }
};

// A tensor over time and samples. Padded: [T, N, C] with a stride a step. Packed: [rows, C], step t starts at row
// step_start[t]. Jagged: [rows, C], sample n starts at row sample_start[n].
template <class T>
struct Sequence {
  T* data = nullptr;
  const int64_t* step_start = nullptr;    // [T], only when packed
  const int64_t* sample_start = nullptr;  // [N], only when jagged
  int64_t step_stride = 0;
  int64_t sample_stride = 0;
  int64_t col_stride = 0;

  FASTRNN_FN T* row(int64_t t, int64_t sample) const {
    return data + (step_start ? step_start[t] : t) * step_stride +
           (sample_start ? sample_start[sample] : sample) * sample_stride;
  }
  // Samples first, first + step, ... of a sequence that is not jagged.
  Sequence every(int64_t step, int64_t first) const {
    return data ? Sequence{data + first * sample_stride, step_start, nullptr, step_stride,
                           sample_stride * step,         col_stride}
                : Sequence{};
  }
  FASTRNN_FN explicit operator bool() const { return data != nullptr; }
};

// Weights in torch's layout: gate g of unit u is row g * H + u.
template <class T>
struct Weights {
  Matrix<T> ih;       // [G * H, I]
  Matrix<T> hh;       // [G * H, R]
  Vector<T> bias_ih;  // [G * H], null without bias
  Vector<T> bias_hh;  // [G * H]
  Matrix<T> hr;       // [R, H], null without projection
};

// Which rows run at which step, in which order.
struct Schedule {
  int64_t T = 0;
  int64_t N = 0;
  const int64_t* order = nullptr;    // [N], sample of row r; null: r itself
  const int64_t* active = nullptr;   // [T], rows running at step t (non-increasing); null: N
  bool reverse = false;              // from the last step to the first
  Matrix<const uint8_t> reset;       // [T, N], not 0 at the first step of a segment; null: none
  const int64_t* lengths = nullptr;  // [N], on a GPU instead of order and active; clamped to [0, T]; null: T

  int64_t sample(int64_t r) const { return order ? order[r] : r; }
  int64_t rows(int64_t t) const { return active ? active[t] : N; }
  int64_t step(int64_t s) const { return reverse ? T - 1 - s : s; }  // time of the s-th step walked
  int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  int64_t next(int64_t t) const { return std::clamp<int64_t>(reverse ? t - 1 : t + 1, 0, T - 1); }  // or t itself
  bool runs(int64_t t, int64_t r) const { return 0 <= t && t < T && r < rows(t); }

  // Row r's state is cleared before step t. The reverse walk enters a segment at its end: one step before the
  // mark of the next one.
  bool resets(int64_t t, int64_t r) const {
    if (!reset) return false;
    const int64_t mark = reverse ? t + 1 : t;
    return runs(mark, r) && reset(mark, sample(r)) != 0;
  }
};

template <class S>
struct ScanParams {
  using A = Accumulate<S>;

  int64_t input_size = 0;   // I
  int64_t hidden_size = 0;  // H
  int64_t output_size = 0;  // R: the projected size, or H
  Schedule schedule;
  Weights<const S> weights;

  Sequence<const S> x;  // [T, N, I]
  Matrix<const S> h_0;  // [N, R]
  Matrix<const S> c_0;  // [N, H], null for cells without c

  // What a reset replaces the state by; null: zeros.
  Matrix<const S> reset_h;  // [N, R]
  Matrix<const S> reset_c;  // [N, H]

  // Results of the forward pass; inputs of the backward pass. Steps a sample does not run are left untouched.
  Sequence<S> y;      // [T, N, R]
  Sequence<S> gates;  // [T, N, kSaved * H], what the cell saves; null: nothing is saved, backward recomputes it
  Sequence<A> cells;  // [T, N, H], c of every step; null: not saved
  Matrix<S> h_n;      // [N, R]
  Matrix<S> c_n;      // [N, H]
};

// Gradients of a scan. A null input gradient counts as zero, a null result is not computed.
template <class S>
struct ScanGradients {
  Sequence<const S> y;                  // [T, N, R], given
  Sequence<const Accumulate<S>> cells;  // [T, N, H], given
  Matrix<const S> h_n;                  // [N, R], given
  Matrix<const S> c_n;                  // [N, H], given
  Sequence<S> x;                        // [T, N, I]
  Matrix<S> h_0;                        // [N, R]
  Matrix<S> c_0;                        // [N, H]
  Matrix<S> reset_h;                    // [N, R]
  Matrix<S> reset_c;                    // [N, H]

  // Samples share the weights but may be split into groups with gradients of their own (per-sample gradients). Sample n
  // is in group n % groups; every group's gradients have the rows of a weight, one group's after the other's.
  int64_t groups = 1;
  Weights<S> weights;

  bool any_weight() const { return weights.ih || weights.hh || weights.bias_ih || weights.bias_hh || weights.hr; }
};

}  // namespace fastrnn
