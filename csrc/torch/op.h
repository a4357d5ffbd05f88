// What the ops are on every device: their arguments, their results, and the samples each call of a kernel takes.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "torch/checks.h"

namespace fastrnn {

// --- arguments ---

template <class...>
struct Types {};

// An op as the dispatcher calls it, from a function of ScanInputs: the list of arguments that the schemas share.
template <auto kFunction, class Before, class After>
struct Op;

template <auto kFunction, class... Before, class... After>
struct Op<kFunction, Types<Before...>, Types<After...>> {
  static auto call(std::string cell, Before... before, Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih,
                   Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
                   OptionalTensor reset_h, OptionalTensor reset_c, OptionalTensor lengths, OptionalTensor batch_sizes,
                   OptionalTensor offsets, OptionalTensor reset, bool reverse, After... after, int64_t groups,
                   bool tf32) {
    return kFunction({cell, input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c,
                      lengths, batch_sizes, offsets, reset, reverse, groups, tf32},
                     {before..., after...});
  }
};

struct ScanFlags {
  bool save;  // what backward reads
  bool recompute;
  bool all_states;
};

// What backward takes beside the inputs: gradients of results, and results as scan returned them.
struct ScanSaved {
  OptionalTensor grad_y, grad_h_n, grad_c_n, grad_cells;
  Tensor y, gates, cells;
  int64_t needs;  // bit i asks for the gradient of the i-th tensor of the result
};

template <auto kFunction>  // (const ScanInputs&, const ScanFlags&)
using ScanOp = Op<kFunction, Types<>, Types<bool, bool, bool>>;
template <auto kFunction>  // (const ScanInputs&, const ScanSaved&)
using ScanBackwardOp = Op<kFunction, Types<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>,
                          Types<Tensor, Tensor, Tensor, int64_t>>;

// y, h_n, c_n, gates, cells
using ScanResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// of input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c
using ScanGradientResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// --- results ---

// An op cannot return None: what there is not comes back with no elements.
inline Tensor empty_like_dtype(const Tensor& like, std::vector<int64_t> shape, bool wanted = true) {
  if (!wanted) shape = {0};
  return torch::stable::new_empty(like, shape);
}

inline std::vector<int64_t> sequence_shape(const ScanInputs& in, const ScanSizes& sizes, int64_t columns) {
  if (in.rows_input()) return {in.input.size(0), columns};
  return {sizes.T, sizes.N, columns};
}

// Of a jagged sequence, there are rows that are no sample's step.
inline bool has_holes(const ScanInputs& in, const ScanSizes& sizes) {
  if (!in.offsets) return false;
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  return in.lengths || offsets[0] > 0 || offsets[sizes.N] < in.input.size(0);
}

inline ScalarType cell_state_dtype(const Tensor& input) {
  const ScalarType dtype = input.scalar_type();
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

// How a device makes a sequence. In one that a caller sees, steps that no sample runs are 0; in one that only backward
// reads, they are left as they are.
using NewSequence = Tensor (*)(const ScanInputs&, const ScanSizes&, int64_t columns, ScalarType, bool seen);

inline ScanResults new_results(const ScanInputs& in, const ScanSizes& sizes, const ScanFlags& flags,
                               NewSequence new_sequence) {
  const auto [save, recompute, all_states] = flags;
  const bool has_c = sizes.cell.has_cell_state;
  const ScalarType dtype = in.input.scalar_type();
  const auto maybe = [&](bool wanted, int64_t columns, ScalarType kind, bool seen) {
    return wanted ? new_sequence(in, sizes, columns, kind, seen)
                  : torch::stable::new_empty(in.input, std::vector<int64_t>{0}, kind);
  };
  return {
      new_sequence(in, sizes, sizes.R, dtype, true),
      empty_like_dtype(in.input, {sizes.N, sizes.R}),
      empty_like_dtype(in.input, {sizes.N, sizes.H}, has_c),
      maybe(save && !recompute && sizes.cell.saved > 0, sizes.cell.saved * sizes.H, dtype, false),
      maybe(has_c && (save || all_states), sizes.H, cell_state_dtype(in.input), all_states),
  };
}

inline ScanGradientResults new_gradients(const ScanInputs& in, const ScanSizes& sizes, int64_t needs,
                                         NewSequence new_sequence) {
  const auto [T, N, I, H, R, cell] = sizes;
  const auto wanted = [&](int bit, const OptionalTensor& of) { return of.has_value() && (needs >> bit & 1); };
  const auto matrix = [&](int bit, const OptionalTensor& of, int64_t columns) {
    return empty_like_dtype(in.input, {N, columns}, wanted(bit, of));
  };
  const auto weight = [&](int bit, const OptionalTensor& of, std::vector<int64_t> shape) {
    if (in.groups > 0) shape.insert(shape.begin(), in.groups);
    return empty_like_dtype(in.input, shape, wanted(bit, of));
  };
  const int64_t rows = cell.gates * H;
  return {
      wanted(0, in.input) ? new_sequence(in, sizes, I, in.input.scalar_type(), true) : empty_like_dtype(in.input, {0}),
      matrix(1, in.h_0, R),
      matrix(2, in.c_0, H),
      weight(3, in.weight_ih, {rows, I}),
      weight(4, in.weight_hh, {rows, R}),
      weight(5, in.bias_ih, {rows}),
      weight(6, in.bias_hh, {rows}),
      weight(7, in.weight_hr, {R, H}),
      matrix(8, in.reset_h, R),
      matrix(9, in.reset_c, H),
  };
}

// --- from tensors to the boundary ---

inline void check_saved(const ScanInputs& in, const ScanSizes& sizes, const ScanSaved& saved) {
  const auto [T, N, I, H, R, facts] = sizes;
  const ScalarType dtype = in.input.scalar_type();
  const ScalarType cells_dtype = cell_state_dtype(in.input);
  const auto check_sequence = [&](const OptionalTensor& tensor, const char* name, ScalarType kind, int64_t columns) {
    if (!tensor) return;
    check_like(*tensor, name, kind, in.input);
    if (in.rows_input())
      check_shape<2>(*tensor, name, {in.input.size(0), columns});
    else
      check_shape<3>(*tensor, name, {T, N, columns});
  };
  const auto check_matrix = [&](const OptionalTensor& tensor, const char* name, int64_t columns) {
    if (!tensor) return;
    check_like(*tensor, name, dtype, in.input);
    check_shape<2>(*tensor, name, {N, columns});
  };
  const auto check_result = [&](const Tensor& tensor, const char* name, ScalarType kind, int64_t columns) {
    if (columns > 0)
      check_sequence(tensor, name, kind, columns);
    else
      check_shape<1>(tensor, name, {0});
  };
  check_sequence(saved.grad_y, "grad_y", dtype, R);
  check_sequence(saved.grad_cells, "grad_cells", cells_dtype, H);
  check_sequence(saved.y, "y", dtype, R);
  check_matrix(saved.grad_h_n, "grad_h_n", R);
  check_matrix(saved.grad_c_n, "grad_c_n", H);
  const bool recompute = saved.gates.dim() == 1;
  check_result(saved.gates, "gates", dtype, recompute ? 0 : facts.saved * H);
  check_result(saved.cells, "cells", cells_dtype, facts.has_cell_state ? H : 0);
  STD_TORCH_CHECK(saved.y.is_contiguous() && saved.gates.is_contiguous() && saved.cells.is_contiguous(),
                  "fastrnn: y, gates and cells must be as scan returned them");
  STD_TORCH_CHECK(!(saved.grad_c_n || saved.grad_cells) || facts.has_cell_state,
                  "fastrnn: grad_c_n and grad_cells are for cells with a cell state");
}

// The forward pass of one group, but for its schedule.
template <class S>
ScanParams<S> forward_params(const ScanInputs& in, const ScanSizes& sizes, const ScanResults& results, RowStarts starts,
                             int64_t group) {
  const auto& [y, h_n, c_n, gates, cells] = results;
  ScanParams<S> p = scan_params<S>(in, sizes, starts, group);
  p.y = sequence<S>(y, starts);
  p.gates = sequence<S>(gates, starts);
  p.cells = sequence<Accumulate<S>>(cells, starts);
  p.h_n = matrix<S>(h_n);
  p.c_n = matrix<S>(c_n);
  return p;
}

// What the forward pass wrote, for the backward pass to read: asking for writable data would copy a copy-on-write
// tensor.
template <class S>
Sequence<S> written_sequence(const Tensor& tensor, RowStarts starts) {
  const Sequence<const S> read = sequence<const S>(tensor, starts);
  return {const_cast<S*>(read.data), read.step_start,    read.sample_start,
          read.step_stride,          read.sample_stride, read.col_stride};
}

// The backward pass of one group, but for its schedule.
template <class S>
ScanParams<S> backward_params(const ScanInputs& in, const ScanSizes& sizes, const ScanSaved& saved, RowStarts starts,
                              int64_t group) {
  ScanParams<S> p = scan_params<S>(in, sizes, starts, group);
  p.y = written_sequence<S>(saved.y, starts);
  p.gates = written_sequence<S>(saved.gates, starts);
  p.cells = written_sequence<Accumulate<S>>(saved.cells, starts);
  return p;
}

template <class S>
ScanGradients<S> scan_gradients(const ScanSaved& saved, const ScanGradientResults& results, RowStarts starts,
                                int64_t group, int64_t groups) {
  const auto& [x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c] = results;
  return {
      .y = sequence<const S>(saved.grad_y, starts),
      .cells = sequence<const Accumulate<S>>(saved.grad_cells, starts),
      .h_n = matrix<const S>(saved.grad_h_n),
      .c_n = matrix<const S>(saved.grad_c_n),
      .x = sequence<S>(x, starts),
      .h_0 = matrix<S>(h_0),
      .c_0 = matrix<S>(c_0),
      .reset_h = matrix<S>(reset_h),
      .reset_c = matrix<S>(reset_c),
      .groups = std::max<int64_t>(1, groups),
      .weights = {.ih = matrix<S>(weight_ih, group),
                  .hh = matrix<S>(weight_hh, group),
                  .bias_ih = vector<S>(bias_ih, group),
                  .bias_hh = vector<S>(bias_hh, group),
                  .hr = matrix<S>(weight_hr, group)},
  };
}

// Groups have weights of their own: then each is a scan that knows nothing of the others. Groups that share their
// weights are one scan, whose gradients lie one after the other.
inline bool has_own_weights(const ScanInputs& in) {
  const auto own = [](const OptionalTensor& weight, int64_t rank) { return weight && weight->dim() > rank; };
  return own(in.weight_ih, 2) || own(in.weight_hh, 2) || own(in.bias_ih, 1) || own(in.bias_hh, 1) ||
         own(in.weight_hr, 2);
}

// --- what scan_choice answers ---

// "key: value" a line.
class Answer {
 public:
  template <class V>
  void say(std::string_view key, const V& value) {
    text_.append(key).append(": ");
    if constexpr (std::is_convertible_v<V, std::string_view>)
      text_.append(std::string_view(value));
    else
      text_.append(std::to_string(value));
    text_.append("\n");
  }

  void say_sizes(const ScanSizes& sizes, int64_t rows) {
    say("T", sizes.T);
    say("N", sizes.N);
    say("I", sizes.I);
    say("H", sizes.H);
    say("R", sizes.R);
    say("rows", rows);
  }

  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace fastrnn
