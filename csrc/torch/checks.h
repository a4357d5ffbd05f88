// From tensors to ScanParams, once for every device: every pointer that goes below the boundary is checked here.
//
// Errors a user can cause are raised in Python, with torch's types and more words; these guard memory, also when the op
// is called directly with nonsense. The stable ABI can raise RuntimeError alone.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "dispatch.h"
#include "scan.h"

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensors of one scan, as the op receives them.
struct ScanInputs {
  std::string cell;
  Tensor input;                // [T, N, I], or [rows, I] when packed or jagged
  Tensor h_0;                  // [N, R]
  OptionalTensor c_0;          // [N, H]
  Tensor weight_ih;            // [G * H, I]
  Tensor weight_hh;            // [G * H, R]
  OptionalTensor bias_ih;      // [G * H]
  OptionalTensor bias_hh;      // [G * H]
  OptionalTensor weight_hr;    // [R, H]
  OptionalTensor reset_h;      // [N, R], what a reset replaces the state by; null: zeros
  OptionalTensor reset_c;      // [N, H]
  OptionalTensor lengths;      // [N] int64, CPU or, beside a padded input, where that is
  OptionalTensor batch_sizes;  // [T] int64, CPU: the input is packed
  OptionalTensor offsets;      // [N + 1] int64, CPU: the input is jagged, sample n starts at row offsets[n]
  OptionalTensor reset;        // [T, N] bool
  bool reverse;
  int64_t groups;  // 0: none. Sample n is in group n % groups; a weight of a rank more has one entry for each group.
  bool tf32;       // on a GPU, products of float32 may round their factors to TF32

  bool rows_input() const { return batch_sizes || offsets; }
};

// Compile-time facts of a cell, for code that runs before the dispatch.
struct CellFacts {
  int64_t gates;
  int64_t saved;
  bool has_cell_state;
};

inline CellFacts cell_facts(const std::string& cell) {
  CellFacts facts{};
  const bool known =
      Cells::dispatch(cell, [&]<class Cell>() { facts = {Cell::kGates, Cell::kSaved, Cell::kHasCellState}; });
  STD_TORCH_CHECK(known, "fastrnn: unknown cell '", cell, "'");
  return facts;
}

struct ScanSizes {
  int64_t T, N, I, H, R;
  CellFacts cell;
};

// Calls f.template operator()<S>() for the storage type of the tensor.
template <class F>
auto dispatch_real_dtype(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f.template operator()<float>();
    case ScalarType::Double: return f.template operator()<double>();
    case ScalarType::BFloat16: return f.template operator()<BFloat16>();
    case ScalarType::Half: return f.template operator()<Half>();
    default: STD_TORCH_CHECK(false, "fastrnn: no kernel for dtype ", static_cast<int>(tensor.scalar_type()));
  }
}

// Or of dual numbers, which travel as complex ones.
template <class F>
auto dispatch_dtype(const Tensor& tensor, F&& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::ComplexFloat: return f.template operator()<Dual<float>>();
    case ScalarType::ComplexDouble: return f.template operator()<Dual<double>>();
    default: return dispatch_real_dtype(tensor, f);
  }
}

template <size_t kRank>
void check_shape(const Tensor& tensor, const char* name, std::array<int64_t, kRank> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(kRank);
  for (size_t i = 0; same && i < kRank; ++i) same = tensor.size(i) == expected[i];
  if (same) return;
  const auto list = [](auto begin, auto end) {
    std::string text = "[";
    for (auto it = begin; it != end; ++it) text.append(it == begin ? "" : ", ").append(std::to_string(*it));
    return text.append("]");
  };
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(false, "fastrnn: ", name, " has shape ", list(sizes.begin(), sizes.end()), ", expected ",
                  list(expected.begin(), expected.end()));
}

inline void check_like(const Tensor& tensor, const char* name, ScalarType dtype, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "fastrnn: ", name, " has dtype ",
                  static_cast<int>(tensor.scalar_type()), ", expected ", static_cast<int>(dtype));
  STD_TORCH_CHECK(tensor.device() == other.device(), "fastrnn: ", name, " is on another device than input");
}

// A host vector of integers that the walk is planned by.
inline const int64_t* check_host_vector(const Tensor& tensor, const char* name, int64_t size) {
  check_shape<1>(tensor, name, {size});
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(),
                  "fastrnn: ", name, " must be a contiguous int64 tensor on CPU");
  return tensor.const_data_ptr<int64_t>();
}

// Lengths of a padded input. To look at those on a GPU would wait for it: the kernels clamp them.
inline void check_lengths(const ScanInputs& in, const ScanSizes& sizes) {
  if (!in.lengths->is_cpu()) {
    check_like(*in.lengths, "lengths", ScalarType::Long, in.input);
    return check_shape<1>(*in.lengths, "lengths", {sizes.N});
  }
  const int64_t* lengths = check_host_vector(*in.lengths, "lengths", sizes.N);
  for (int64_t n = 0; n < sizes.N; ++n)
    STD_TORCH_CHECK(0 <= lengths[n] && lengths[n] <= sizes.T, "fastrnn: lengths[", n, "] is ", lengths[n],
                    ", expected 0 <= length <= ", sizes.T);
}

// Where sample n of a jagged input begins, and how long it is.
inline int64_t jagged_length(const ScanInputs& in, int64_t n) {
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  return in.lengths ? in.lengths->const_data_ptr<int64_t>()[n] : offsets[n + 1] - offsets[n];
}

// Offsets that increase within the input's rows, and lengths that stay between them. Returns the longest.
inline int64_t check_jagged(const ScanInputs& in, int64_t N) {
  STD_TORCH_CHECK(!in.batch_sizes, "fastrnn: offsets and batch_sizes exclude each other");
  STD_TORCH_CHECK(in.groups <= 1, "fastrnn: a jagged input cannot be split into groups");
  const int64_t* offsets = check_host_vector(*in.offsets, "offsets", N + 1);
  if (in.lengths) check_host_vector(*in.lengths, "lengths", N);
  STD_TORCH_CHECK(0 <= offsets[0] && offsets[N] <= in.input.size(0), "fastrnn: offsets span rows ", offsets[0], " to ",
                  offsets[N], ", but input has ", in.input.size(0), " rows");
  int64_t longest = 0;
  for (int64_t n = 0; n < N; ++n) {
    const int64_t length = jagged_length(in, n);
    STD_TORCH_CHECK(0 <= length && length <= offsets[n + 1] - offsets[n], "fastrnn: sample ", n, " has ",
                    offsets[n + 1] - offsets[n], " rows and length ", length);
    longest = std::max(longest, length);
  }
  return longest;
}

inline ScanSizes check_sizes(const ScanInputs& in) {
  const CellFacts cell = cell_facts(in.cell);
  const bool rows_input = in.rows_input();
  STD_TORCH_CHECK(in.input.dim() == (rows_input ? 2 : 3), "fastrnn: input has ", in.input.dim(),
                  " dimensions, expected ", rows_input ? 2 : 3);
  STD_TORCH_CHECK(in.h_0.dim() == 2, "fastrnn: h_0 has ", in.h_0.dim(), " dimensions, expected 2");
  const int64_t most = in.groups > 0 ? 3 : 2;
  for (const Tensor* weight : {&in.weight_ih, &in.weight_hh})
    STD_TORCH_CHECK(2 <= weight->dim() && weight->dim() <= most,
                    "fastrnn: weight_ih and weight_hh must have 2 dimensions, or 3 in groups");
  const int64_t rows = in.weight_ih.size(-2);
  STD_TORCH_CHECK(rows > 0 && rows % cell.gates == 0, "fastrnn: weight_ih has ", rows,
                  " rows, expected a positive multiple of ", cell.gates);
  STD_TORCH_CHECK(!(in.batch_sizes && in.lengths), "fastrnn: lengths and batch_sizes exclude each other");
  if (in.batch_sizes) STD_TORCH_CHECK(in.batch_sizes->dim() == 1, "fastrnn: batch_sizes must have 1 dimension");
  const int64_t N = rows_input ? in.h_0.size(0) : in.input.size(1);
  STD_TORCH_CHECK(in.groups >= 0 && (in.groups == 0 || N % in.groups == 0), "fastrnn: ", N,
                  " samples are no multiple of ", in.groups, " groups");
  return {
      .T = in.offsets       ? check_jagged(in, N)
           : in.batch_sizes ? in.batch_sizes->size(0)
                            : in.input.size(0),
      .N = N,
      .I = in.input.size(-1),
      .H = rows / cell.gates,
      .R = in.weight_hh.size(-1),
      .cell = cell,
  };
}

// Buffers hold a few rows of each size, and expanded tensors make any size free: below these bounds no product of sizes
// overflows.
constexpr int64_t kMaxSteps = int64_t{1} << 40;
constexpr int64_t kMaxSize = int64_t{1} << 24;

inline void check_bounds(const ScanSizes& sizes) {
  const auto [T, N, I, H, R, cell] = sizes;
  STD_TORCH_CHECK(T <= kMaxSteps, "fastrnn: ", T, " steps are more than ", kMaxSteps);
  const int64_t largest = std::max({N, I, H, R});
  STD_TORCH_CHECK(largest <= kMaxSize, "fastrnn: a size of ", largest,
                  " (of batch, input_size, hidden_size, "
                  "proj_size) is more than ",
                  kMaxSize);
}

inline void check_inputs(const ScanInputs& in, const ScanSizes& sizes) {
  check_bounds(sizes);
  const auto [T, N, I, H, R, cell] = sizes;
  const ScalarType dtype = in.input.scalar_type();
  STD_TORCH_CHECK(R > 0, "fastrnn: weight_hh has no columns");
  const auto check = [&]<size_t kRank>(const OptionalTensor& tensor, const char* name,
                                       std::array<int64_t, kRank> shape) {
    if (!tensor) return;
    check_like(*tensor, name, dtype, in.input);
    check_shape(*tensor, name, shape);
  };
  const auto check_weight = [&]<size_t kRank>(const OptionalTensor& tensor, const char* name,
                                              std::array<int64_t, kRank> shape) {
    if (!tensor || in.groups == 0 || tensor->dim() != static_cast<int64_t>(kRank) + 1)
      return check(tensor, name, shape);
    std::array<int64_t, kRank + 1> of_groups{in.groups};
    std::copy(shape.begin(), shape.end(), of_groups.begin() + 1);
    check(tensor, name, of_groups);
  };
  check.operator()<2>(in.h_0, "h_0", {N, R});
  check.operator()<2>(in.c_0, "c_0", {N, H});
  check_weight.operator()<2>(in.weight_ih, "weight_ih", {cell.gates * H, I});
  check_weight.operator()<2>(in.weight_hh, "weight_hh", {cell.gates * H, R});
  check_weight.operator()<1>(in.bias_ih, "bias_ih", {cell.gates * H});
  check_weight.operator()<1>(in.bias_hh, "bias_hh", {cell.gates * H});
  check_weight.operator()<2>(in.weight_hr, "weight_hr", {R, H});
  check.operator()<2>(in.reset_h, "reset_h", {N, R});
  check.operator()<2>(in.reset_c, "reset_c", {N, H});
  STD_TORCH_CHECK(in.c_0.has_value() == cell.has_cell_state,
                  "fastrnn: c_0 is for cells with a cell state, and those "
                  "need it");
  STD_TORCH_CHECK(cell.has_cell_state || !in.weight_hr, "fastrnn: a projection needs a cell state");
  STD_TORCH_CHECK(cell.has_cell_state || !in.reset_c, "fastrnn: reset_c is for cells with a cell state");
  STD_TORCH_CHECK(in.weight_hr || R == H, "fastrnn: weight_hh has ", R, " columns, expected hidden_size = ", H);
  if (in.reset) {
    check_like(*in.reset, "reset", ScalarType::Bool, in.input);
    check_shape<2>(*in.reset, "reset", {T, N});
  }
  if (in.lengths && !in.offsets) check_lengths(in, sizes);
  if (in.batch_sizes) {
    const int64_t* active = check_host_vector(*in.batch_sizes, "batch_sizes", T);
    int64_t rows = 0;
    for (int64_t t = 0; t < T; ++t) {
      STD_TORCH_CHECK(0 < active[t] && active[t] <= (t ? active[t - 1] : N), "fastrnn: batch_sizes[", t, "] is ",
                      active[t], ", expected 1 to ", t ? active[t - 1] : N);
      rows += active[t];
    }
    STD_TORCH_CHECK(rows == in.input.size(0), "fastrnn: batch_sizes sum to ", rows, ", but input has ",
                    in.input.size(0), " rows");
  }
}

// Views. A const S asks for const data, which keeps a copy-on-write tensor shared.
template <class S>
S* data_of(const Tensor& tensor) {
  S* data;
  if constexpr (std::is_const_v<S>)
    data = static_cast<S*>(tensor.const_data_ptr());
  else
    data = static_cast<S*>(tensor.mutable_data_ptr());
  STD_TORCH_CHECK(data, "fastrnn: a tensor has no data: its storage was freed");
  return data;
}

// Of a tensor of a rank more: the entry of a group.
template <class S>
Matrix<S> matrix(const OptionalTensor& tensor, int64_t group = 0) {
  if (!tensor || tensor->numel() == 0) return {};
  return {data_of<S>(*tensor) + (tensor->dim() == 3 ? group * tensor->stride(0) : 0), tensor->stride(-2),
          tensor->stride(-1)};
}

template <class S>
Vector<S> vector(const OptionalTensor& tensor, int64_t group = 0) {
  if (!tensor || tensor->numel() == 0) return {};
  return {data_of<S>(*tensor) + (tensor->dim() == 2 ? group * tensor->stride(0) : 0), tensor->stride(-1)};
}

// Where the rows of a sequence lie: see Sequence.
struct RowStarts {
  const int64_t* of_steps = nullptr;    // when packed
  const int64_t* of_samples = nullptr;  // when jagged
};

template <class S>
Sequence<S> sequence(const OptionalTensor& tensor, RowStarts starts) {
  if (!tensor) return {};
  if (tensor->numel() == 0) return {nullptr, starts.of_steps, starts.of_samples};  // of no features there are rows
  const int64_t first = tensor->stride(0);
  return {
      data_of<S>(*tensor), starts.of_steps, starts.of_samples, first, tensor->dim() == 2 ? first : tensor->stride(1),
      tensor->stride(-1)};
}

// Everything but the schedule and the results, with the weights of a group.
template <class S>
ScanParams<S> scan_params(const ScanInputs& in, const ScanSizes& sizes, RowStarts starts, int64_t group) {
  ScanParams<S> p;
  p.input_size = sizes.I;
  p.hidden_size = sizes.H;
  p.output_size = sizes.R;
  p.weights.ih = matrix<const S>(in.weight_ih, group);
  p.weights.hh = matrix<const S>(in.weight_hh, group);
  p.weights.bias_ih = vector<const S>(in.bias_ih, group);
  p.weights.bias_hh = vector<const S>(in.bias_hh, group);
  p.weights.hr = matrix<const S>(in.weight_hr, group);
  p.x = sequence<const S>(in.input, starts);
  p.h_0 = matrix<const S>(in.h_0);
  p.c_0 = matrix<const S>(in.c_0);
  p.reset_h = matrix<const S>(in.reset_h);
  p.reset_c = matrix<const S>(in.reset_c);
  return p;
}

}  // namespace fastrnn
