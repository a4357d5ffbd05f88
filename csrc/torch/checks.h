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
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "scan.h"
#include "torch/lists.h"

namespace fastrnn {

using torch::headeronly::ScalarType;

// What both ops take.
struct ScanInputs : PerTensor<OptionalTensor> {
  std::string cell;
  CellFacts facts;
  OptionalTensor lengths;      // [N] int64, CPU or, beside a padded input, where that is
  OptionalTensor batch_sizes;  // [T] int64, CPU: the input is packed
  OptionalTensor offsets;      // [N + 1] int64, CPU: the input is jagged, sample n starts at row offsets[n]
  OptionalTensor reset;        // [T, N] bool
  bool reverse;
  int64_t groups;  // 0: none. Sample n is in group n % groups; a weight of a rank more has one entry for each group.
  std::string rounds_to;        // products of float32 may round their factors: "tf32" on a GPU, "bf16" on a CPU
  std::vector<double> numbers;  // those of the cell

  bool rows_input() const { return batch_sizes || offsets; }
};

// Calls f.template operator()<S>() for the storage type of that dtype.
template <class F>
auto dispatch_real_dtype(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f.template operator()<float>();
    case ScalarType::Double: return f.template operator()<double>();
    case ScalarType::BFloat16: return f.template operator()<BFloat16>();
    case ScalarType::Half: return f.template operator()<Half>();
    default: STD_TORCH_CHECK(false, "fastrnn: no kernel for dtype ", static_cast<int>(dtype));
  }
}

// As dispatch_real_dtype, and for dual numbers, which travel as complex ones.
template <class F>
auto dispatch_dtype(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::ComplexFloat: return f.template operator()<Dual<float>>();
    case ScalarType::ComplexDouble: return f.template operator()<Dual<double>>();
    default: return dispatch_real_dtype(dtype, f);
  }
}

// At most three sizes, without an allocation.
struct Shape {
  std::array<int64_t, 3> sizes{};
  size_t rank = 0;

  Shape(std::initializer_list<int64_t> list) : rank(list.size()) { std::copy(list.begin(), list.end(), sizes.begin()); }
  torch::headeronly::IntHeaderOnlyArrayRef ref() const { return {sizes.data(), rank}; }
};

// The shape of a tensor in the tables. A weight that is `grouped` has one entry for each group.
inline Shape shape_of(const TensorInfo& info, const ScanInputs& in, const ScanSizes& sizes, bool grouped) {
  const int64_t columns = length(info.columns, sizes), rows = length(info.rows, sizes);
  switch (info.role) {
    case Role::kSequence:
      if (in.rows_input()) return {in.input->size(0), columns};
      return {sizes.T, sizes.N, columns};
    case Role::kState: return {sizes.N, columns};
    case Role::kMatrix: return grouped ? Shape{in.groups, rows, columns} : Shape{rows, columns};
    case Role::kVector: return grouped ? Shape{in.groups, columns} : Shape{columns};
  }
  return {};
}

inline void check_shape(const Tensor& tensor, const char* name, const Shape& expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.ref().begin(), expected.ref().end())) return;
  const auto list = [](const auto& sizes) {
    std::string text;
    for (const int64_t size : sizes) text.append(text.empty() ? "" : ", ").append(std::to_string(size));
    return "[" + text + "]";
  };
  STD_TORCH_CHECK(false, "fastrnn: ", name, " has shape ", list(sizes), ", expected ", list(expected.ref()));
}

inline void check_like(const Tensor& tensor, const char* name, ScalarType dtype, const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, "fastrnn: ", name, " has dtype ",
                  static_cast<int>(tensor.scalar_type()), ", expected ", static_cast<int>(dtype));
  STD_TORCH_CHECK(tensor.device() == other.device(), "fastrnn: ", name, " is on another device than input");
}

// A host vector of integers that the walk is planned by.
inline const int64_t* check_host_vector(const Tensor& tensor, const char* name, int64_t size) {
  check_shape(tensor, name, {size});
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(),
                  "fastrnn: ", name, " must be a contiguous int64 tensor on CPU");
  return tensor.const_data_ptr<int64_t>();
}

// Checks the lengths of a padded input. Reading those on a GPU would wait for it, so the kernels clamp them instead.
inline void check_lengths(const ScanInputs& in, const ScanSizes& sizes) {
  if (!in.lengths->is_cpu()) {
    check_like(*in.lengths, "lengths", ScalarType::Long, *in.input);
    return check_shape(*in.lengths, "lengths", {sizes.N});
  }
  const int64_t* lengths = check_host_vector(*in.lengths, "lengths", sizes.N);
  for (int64_t n = 0; n < sizes.N; ++n)
    STD_TORCH_CHECK(0 <= lengths[n] && lengths[n] <= sizes.T, "fastrnn: lengths[", n, "] is ", lengths[n],
                    ", expected 0 <= length <= ", sizes.T);
}

// Returns how many steps sample n of a jagged input has.
inline int64_t jagged_length(const ScanInputs& in, int64_t n) {
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  return in.lengths ? in.lengths->const_data_ptr<int64_t>()[n] : offsets[n + 1] - offsets[n];
}

// Checks that offsets increase within the input's rows and that lengths fit between them. Returns the longest length.
inline int64_t check_jagged(const ScanInputs& in, int64_t N) {
  STD_TORCH_CHECK(!in.batch_sizes, "fastrnn: offsets and batch_sizes exclude each other");
  STD_TORCH_CHECK(in.groups <= 1, "fastrnn: a jagged input cannot be split into groups");
  const int64_t* offsets = check_host_vector(*in.offsets, "offsets", N + 1);
  if (in.lengths) check_host_vector(*in.lengths, "lengths", N);
  STD_TORCH_CHECK(0 <= offsets[0] && offsets[N] <= in.input->size(0), "fastrnn: offsets span rows ", offsets[0], " to ",
                  offsets[N], ", but input has ", in.input->size(0), " rows");
  int64_t longest = 0;
  for (int64_t n = 0; n < N; ++n) {
    const int64_t length = jagged_length(in, n);
    STD_TORCH_CHECK(0 <= length && length <= offsets[n + 1] - offsets[n], "fastrnn: sample ", n, " has ",
                    offsets[n + 1] - offsets[n], " rows and length ", length);
    longest = std::max(longest, length);
  }
  return longest;
}

inline void check_input_rank(const ScanInputs& in) {
  const int64_t rank = in.rows_input() ? 2 : 3;
  STD_TORCH_CHECK(in.input->dim() == rank, "fastrnn: input has ", in.input->dim(), " dimensions, expected ", rank);
}

// Returns how many steps an input of the right rank has.
inline int64_t check_steps(const ScanInputs& in, int64_t N) {
  STD_TORCH_CHECK(!(in.batch_sizes && in.lengths), "fastrnn: lengths and batch_sizes exclude each other");
  if (in.offsets) return check_jagged(in, N);
  if (!in.batch_sizes) return in.input->size(0);
  STD_TORCH_CHECK(in.batch_sizes->dim() == 1, "fastrnn: batch_sizes must have 1 dimension");
  return in.batch_sizes->size(0);
}

// The sizes of a scan over N samples, from an input of the right rank.
inline ScanSizes check_sizes(const ScanInputs& in, int64_t N) {
  const int64_t most = in.groups > 0 ? 3 : 2;
  for (const Tensor* weight : {&*in.weight_ih, &*in.weight_hh})
    STD_TORCH_CHECK(2 <= weight->dim() && weight->dim() <= most,
                    "fastrnn: weight_ih and weight_hh must have 2 dimensions, or 3 in groups");
  const int64_t rows = in.weight_ih->size(-2);
  STD_TORCH_CHECK(rows > 0 && rows % in.facts.input_gates == 0, "fastrnn: weight_ih has ", rows,
                  " rows, expected a positive multiple of ", in.facts.input_gates);
  STD_TORCH_CHECK(in.groups >= 0 && (in.groups == 0 || N % in.groups == 0), "fastrnn: ", N,
                  " samples are no multiple of ", in.groups, " groups");
  return {
      .T = check_steps(in, N),
      .N = N,
      .I = in.input->size(-1),
      .H = rows / in.facts.input_gates,
      .R = in.weight_hh->size(-1),
      .cell = in.facts,
  };
}

inline ScanSizes check_sizes(const ScanInputs& in) {
  check_input_rank(in);
  STD_TORCH_CHECK(in.h_0->dim() == 2, "fastrnn: h_0 has ", in.h_0->dim(), " dimensions, expected 2");
  return check_sizes(in, in.rows_input() ? in.h_0->size(0) : in.input->size(1));
}

// Expanded tensors make any size free, and buffers hold a few rows of each size: below these bounds no product of sizes
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

inline void check_tensor(const TensorInfo& info, const Tensor& tensor, const ScanInputs& in, const ScanSizes& sizes) {
  check_like(tensor, info.name, in.input->scalar_type(), *in.input);
  const bool grouped = info.is_weight() && in.groups > 0 && tensor.dim() == info.weight_rank() + 1;
  check_shape(tensor, info.name, shape_of(info, in, sizes, grouped));
}

inline void check_weights(const ScanInputs& in, const ScanSizes& sizes) {
  STD_TORCH_CHECK(sizes.R > 0, "fastrnn: weight_hh has no columns");
  STD_TORCH_CHECK(in.weight_hr || sizes.R == sizes.H, "fastrnn: weight_hh has ", sizes.R,
                  " columns, expected hidden_size = ", sizes.H);
  for_each_tensor(
      [&](const TensorInfo& info, const OptionalTensor& tensor) {
        if (tensor && info.is_weight()) check_tensor(info, *tensor, in, sizes);
      },
      in);
}

// Checks all but the weights.
inline void check_data(const ScanInputs& in, const ScanSizes& sizes) {
  check_bounds(sizes);
  for_each_tensor(
      [&](const TensorInfo& info, const OptionalTensor& tensor) {
        if (tensor && !info.is_weight()) check_tensor(info, *tensor, in, sizes);
      },
      in);
  if (in.reset) {
    check_like(*in.reset, "reset", ScalarType::Bool, *in.input);
    check_shape(*in.reset, "reset", {sizes.T, sizes.N});
  }
  if (in.lengths && !in.offsets) check_lengths(in, sizes);
  if (in.batch_sizes) {
    const int64_t* active = check_host_vector(*in.batch_sizes, "batch_sizes", sizes.T);
    int64_t rows = 0;
    for (int64_t t = 0; t < sizes.T; ++t) {
      STD_TORCH_CHECK(0 < active[t] && active[t] <= (t ? active[t - 1] : sizes.N), "fastrnn: batch_sizes[", t, "] is ",
                      active[t], ", expected 1 to ", t ? active[t - 1] : sizes.N);
      rows += active[t];
    }
    STD_TORCH_CHECK(rows == in.input->size(0), "fastrnn: batch_sizes sum to ", rows, ", but input has ",
                    in.input->size(0), " rows");
  }
}

inline void check_numbers(const ScanInputs& in) {
  STD_TORCH_CHECK(static_cast<int64_t>(in.numbers.size()) == in.facts.numbers, "fastrnn: cell '", in.cell, "' takes ",
                  in.facts.numbers, " numbers, got ", in.numbers.size());
}

inline void check_inputs(const ScanInputs& in, const ScanSizes& sizes) {
  check_numbers(in);
  check_data(in, sizes);
  check_weights(in, sizes);
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

// If the tensor has a leading group dimension, selects that group.
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

// The starts of steps or samples in a sequence of rows; see Sequence.
struct RowStarts {
  const int64_t* of_steps = nullptr;    // when packed
  const int64_t* of_samples = nullptr;  // when jagged
};

template <class S>
Sequence<S> sequence(const OptionalTensor& tensor, RowStarts starts) {
  if (!tensor) return {};
  if (tensor->numel() == 0) return {nullptr, starts.of_steps, starts.of_samples};  // rows without features are rows
  const int64_t first = tensor->stride(0);
  return {
      data_of<S>(*tensor), starts.of_steps, starts.of_samples, first, tensor->dim() == 2 ? first : tensor->stride(1),
      tensor->stride(-1)};
}

// What the kernels see of a scan's tensors, or of their gradients: the weights are those of a group.
template <class S>
ScanTensors<S> views_of(const PerTensor<OptionalTensor>& tensors, RowStarts starts, int64_t group) {
  struct {
    RowStarts starts;
    int64_t group;

    void operator()(const TensorInfo&, Sequence<S>& view, const OptionalTensor& tensor) {
      view = sequence<S>(tensor, starts);
    }
    void operator()(const TensorInfo& info, Matrix<S>& view, const OptionalTensor& tensor) {
      view = matrix<S>(tensor, info.is_weight() ? group : 0);
    }
    void operator()(const TensorInfo&, Vector<S>& view, const OptionalTensor& tensor) {
      view = vector<S>(tensor, group);
    }
  } assign{starts, group};
  ScanTensors<S> views;
  for_each_tensor(assign, ViewPerTensor<S>(views), tensors);
  return views;
}

// Returns a device's ScanParams without the schedule and the results.
template <class Params>
Params scan_params(const ScanInputs& in, const ScanSizes& sizes, RowStarts starts, int64_t group) {
  using S = const typename Params::Storage;
  Params p;
  static_cast<ScanTensors<S>&>(p) = views_of<S>(in, starts, group);
  p.input_size = sizes.I;
  p.hidden_size = sizes.H;
  p.output_size = sizes.R;
  p.numbers = in.numbers.data();
  return p;
}

}  // namespace fastrnn
