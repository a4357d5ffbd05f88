// ScanParams: one layer, one direction, one call. THE boundary: everything below it knows no torch.
#pragma once

#include <array>
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
  Matrix from_column(int64_t j) const {
    return data ? Matrix{data + j * col_stride, row_stride, col_stride} : Matrix{};
  }
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

template <class T>
Matrix<T> as_matrix(const Matrix<T>& matrix) {
  return matrix;
}
template <class T>
Matrix<T> as_matrix(const Vector<T>& column) {
  return {column.data, column.stride, 1};
}

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

// Weights in torch's layout: gate g of unit u is row g * H + u. Cells that are not plain have other numbers of gates in
// W_ih and in W_hh, which may have none.
template <class T>
struct Weights {
  Matrix<T> ih;       // [G * H, I]
  Matrix<T> hh;       // [G * H, R]
  Vector<T> bias_ih;  // [G * H], null without bias
  Vector<T> bias_hh;  // [G * H]
  Matrix<T> hr;       // [R, H], null without projection
  Vector<T> vectors;  // [V * H], those that a cell has for each unit

  bool any() const { return ih || hh || bias_ih || bias_hh || hr || vectors; }
};

// What a kernel keeps for every weight.
template <class T>
struct PerWeight {
  T ih, hh, bias_ih, bias_hh, hr;
};

// Calls f(of.ih...), f(of.hh...) and so on, for Weights and PerWeights side by side.
template <class F, class... Of>
void for_each_weight(F&& f, Of&&... of) {
  f(of.ih...);
  f(of.hh...);
  f(of.bias_ih...);
  f(of.bias_hh...);
  f(of.hr...);
}

// A cell reads at most so many sequences beside x.
constexpr int kMostExtraInputs = 4;

// The tensors that a scan may have gradients of: S is const in the scan's inputs, and not in their gradients.
template <class S>
struct ScanTensors {
  Sequence<S> x;  // [T, N, I]
  Matrix<S> h_0;  // [N, R]
  Matrix<S> c_0;  // [N, C * H], the states beside h side by side; null for cells without
  Weights<S> weights;
  Matrix<S> reset_h;                                // [N, R], what a reset replaces the state by; null: zeros
  Matrix<S> reset_c;                                // [N, C * H]
  std::array<Sequence<S>, kMostExtraInputs> extra;  // [T, N, H]

  // Those of samples first, first + step, ..., which share the weights.
  ScanTensors every(int64_t step, int64_t first) const {
    ScanTensors chosen{x.every(step, first),
                       h_0.every(step, first),
                       c_0.every(step, first),
                       weights,
                       reset_h.every(step, first),
                       reset_c.every(step, first),
                       extra};
    for (Sequence<S>& input : chosen.extra) input = input.every(step, first);
    return chosen;
  }
};

// The walk over T steps: in which order, and where a state is replaced. The schedule of a device derives from it and
// says which rows run at a step, `bool runs(t, r)`, and which sample a row is, `int64_t sample(r)`.
template <class Schedule>
struct Walk {
  int64_t T = 0;
  int64_t N = 0;
  bool reverse = false;         // from the last step to the first
  Matrix<const uint8_t> reset;  // [T, N], not 0 at the first step of a segment; null: none

  FASTRNN_FN int64_t step(int64_t s) const { return reverse ? T - 1 - s : s; }  // time of the s-th step walked
  FASTRNN_FN int64_t previous(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTRNN_FN int64_t next(int64_t t) const { return reverse ? t - 1 : t + 1; }

  // Row r's state is replaced before step t. The reverse walk enters a segment at its end: one step before the mark of
  // the next one. A t past either end of the walk is no step.
  FASTRNN_FN bool resets(int64_t t, int64_t r) const {
    if (!reset || t < 0) return false;
    const auto& schedule = static_cast<const Schedule&>(*this);
    const int64_t mark = reverse ? t + 1 : t;
    return schedule.runs(mark, r) && reset(mark, schedule.sample(r)) != 0;
  }
};

// One layer in one direction. Steps that a sample does not run are left untouched.
template <class S, class Schedule>
struct ScanParams : ScanTensors<const S> {
  using Storage = S;
  using A = Accumulate<S>;

  int64_t input_size = 0;   // I
  int64_t hidden_size = 0;  // H
  int64_t output_size = 0;  // R: the projected size, or H
  Schedule schedule;
  const double* numbers = nullptr;  // that a cell takes with a call

  bool projected() const { return this->weights.hr || output_size != hidden_size; }

  // Results of the forward pass; inputs of the backward pass.
  Sequence<S> y;      // [T, N, R]
  Sequence<S> gates;  // [T, N, kSaved * H], what the cell saves; null: nothing is saved, backward recomputes it
  Sequence<A> cells;  // [T, N, C * H], c of every step; null: not saved
  Matrix<S> h_n;      // [N, R]
  Matrix<S> c_n;      // [N, C * H]
};

// Gradients of a scan: those of its results, which are given, and those of its tensors, which are computed. A null
// gradient of a result counts as zero, a null gradient of a tensor is not computed.
template <class S>
struct ScanGradients : ScanTensors<S> {
  Sequence<const S> y;                  // [T, N, R]
  Sequence<const Accumulate<S>> cells;  // [T, N, C * H]
  Matrix<const S> h_n;                  // [N, R]
  Matrix<const S> c_n;                  // [N, C * H]

  // Samples share the weights but may be split into groups with gradients of their own (per-sample gradients). Sample n
  // is in group n % groups; every group's gradients have the rows of a weight, one group's after the other's.
  int64_t groups = 1;
  // The weight gradients are added to what their tensors hold, which one group has.
  bool adds_to_weights = false;
};

namespace cpu {

// Rows are samples sorted by length, longest first, so the rows still running at a step are always a prefix of the
// batch: a padded batch with lengths, a packed one and a plain one are the same walk.
struct Schedule : Walk<Schedule> {
  const int64_t* order = nullptr;   // [N], sample of row r; null: r itself
  const int64_t* active = nullptr;  // [T], rows running at step t (non-increasing); null: N

  int64_t sample(int64_t r) const { return order ? order[r] : r; }
  int64_t rows(int64_t t) const { return active ? active[t] : N; }
  bool runs(int64_t t, int64_t r) const { return 0 <= t && t < T && r < rows(t); }
};

// The type of weights that were packed once for many calls: what products read, or of float weights a shorter one. The
// numbers stand in files.
enum class WeightType : int32_t { kOperand = 0, kBFloat16 = 1, kInt8 = 2 };

template <class S>
struct ScanParams : fastrnn::ScanParams<S, Schedule> {
  const char* packed = nullptr;  // what an instruction set's `pack` wrote; `weights` are then not read
  WeightType packed_as = WeightType::kOperand;
};

}  // namespace cpu

namespace cuda {

// Rows are samples in their order. Lengths are on the device, where the host cannot look at them without waiting.
struct Schedule : Walk<Schedule> {
  const int64_t* lengths = nullptr;  // [N], clamped to [0, T]; null: T

  FASTRNN_FN int64_t sample(int64_t n) const { return n; }
  FASTRNN_FN bool runs(int64_t t, int64_t n) const {
    return 0 <= t && t < (lengths && lengths[n] < T ? lengths[n] : T);
  }
};

template <class S>
using ScanParams = fastrnn::ScanParams<S, Schedule>;

}  // namespace cuda

}  // namespace fastrnn
