// What the ops have in common on every device: their arguments, their results, and the params of a kernel's call.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "scan.h"
#include "torch/checks.h"
#include "torch/lists.h"

namespace fastrnn {

// --- arguments ---

struct ScanFlags {
  bool save;  // what backward reads
  bool recompute;
  bool all_states;
};

// What backward takes beside the inputs.
struct ScanSaved {
  PerResult<OptionalTensor> grads;    // of the differentiable results
  PerResult<OptionalTensor> results;  // those that are saved, as scan returned them; an absent one has no elements
  PerTensor<bool> needs;              // the gradients that are asked for
};

inline ScanInputs scan_inputs(std::string cell, const std::vector<Tensor>& tensors, const std::vector<int64_t>& present,
                              OptionalTensor lengths, OptionalTensor batch_sizes, OptionalTensor offsets,
                              OptionalTensor reset, bool reverse, int64_t groups, std::string rounds_to,
                              std::vector<double> numbers) {
  const CellFacts facts = cell_facts(cell);
  return {tensors_of(tensors, present, facts),
          std::move(cell),
          facts,
          lengths,
          batch_sizes,
          offsets,
          reset,
          reverse,
          groups,
          std::move(rounds_to),
          std::move(numbers)};
}

// Returns what a list has for one of an op's directions: an op of both has the entries of the second behind those of
// the first.
template <size_t kDirections, class Entry>
decltype(auto) share_of(const std::vector<Entry>& list, const char* list_name, size_t direction) {
  if constexpr (kDirections == 1) {
    return (list);  // by reference
  } else {
    STD_TORCH_CHECK(list.size() % kDirections == 0, "fastrnn: ", list_name, " has ", list.size(),
                    " entries, expected as many for each of ", kDirections, " directions");
    const auto count = static_cast<std::ptrdiff_t>(list.size() / kDirections);
    const auto first = list.begin() + static_cast<std::ptrdiff_t>(direction) * count;
    return std::vector<Entry>(first, first + count);
  }
}

// Returns a direction's inputs, or an array of those of both. The second direction walks against the first.
template <size_t kDirections, class... Others>
auto inputs_of_directions(const std::string& cell, const std::vector<Tensor>& tensors,
                          const std::vector<int64_t>& present, const OptionalTensor& lengths,
                          const OptionalTensor& batch_sizes, const OptionalTensor& offsets, const OptionalTensor& reset,
                          bool reverse, const Others&... others) {
  const auto inputs = [&](size_t direction) {
    return scan_inputs(cell, share_of<kDirections>(tensors, "tensors", direction), present, lengths, batch_sizes,
                       offsets, reset, reverse != (direction == 1), others...);
  };
  if constexpr (kDirections == 1)
    return inputs(0);
  else
    return std::array{inputs(0), inputs(1)};
}

// The ops as the dispatcher calls them: their parameters are those of the schemas in ops.cpp.
template <auto kFunction, size_t kDirections = 1>  // (const ScanInputs&, const ScanFlags&), or an array of inputs
struct ScanOp {
  static auto call(std::string cell, std::vector<Tensor> tensors, std::vector<int64_t> present, OptionalTensor lengths,
                   OptionalTensor batch_sizes, OptionalTensor offsets, OptionalTensor reset, bool reverse, bool save,
                   bool recompute, bool all_states, int64_t groups, std::string rounds_to,
                   std::vector<double> numbers) {
    const auto in = inputs_of_directions<kDirections>(cell, tensors, present, lengths, batch_sizes, offsets, reset,
                                                      reverse, groups, rounds_to, numbers);
    return kFunction(in, ScanFlags{save, recompute, all_states});
  }
};

template <auto kFunction, size_t kDirections = 1>  // (const ScanInputs&, const ScanSaved&), or arrays of both
struct ScanBackwardOp {
  static auto call(std::string cell, std::vector<OptionalTensor> grads, std::vector<Tensor> tensors,
                   std::vector<int64_t> present, OptionalTensor lengths, OptionalTensor batch_sizes,
                   OptionalTensor offsets, OptionalTensor reset, bool reverse, std::vector<Tensor> saved,
                   std::vector<bool> needs, int64_t groups, std::string rounds_to, std::vector<double> numbers) {
    const auto in = inputs_of_directions<kDirections>(cell, tensors, present, lengths, batch_sizes, offsets, reset,
                                                      reverse, groups, rounds_to, numbers);
    const auto kept = [&](size_t direction, const CellFacts& facts) {
      return ScanSaved{gradients_of(share_of<kDirections>(grads, "grads", direction), facts),
                       saved_of(share_of<kDirections>(saved, "saved", direction), facts),
                       flags_of("needs", share_of<kDirections>(needs, "needs", direction), facts)};
    };
    if constexpr (kDirections == 1)
      return kFunction(in, kept(0, in.facts));
    else
      return kFunction(in, std::array{kept(0, in[0].facts), kept(1, in[1].facts)});
  }
};

// --- results ---

// Ops cannot return None; an absent result is an empty tensor.
//
// The C function takes a third of the time that torch::stable::new_empty takes, which looks the op up by its name.
inline Tensor empty(const Tensor& like, const Shape& shape, std::optional<ScalarType> dtype = {}) {
  std::array<int64_t, 3> strides{};
  int64_t stride = 1;
  for (size_t i = shape.rank; i-- > 0; stride *= std::max<int64_t>(1, shape.sizes[i])) strides[i] = stride;
  int32_t device, index, type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  if (dtype) type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(shape.rank, shape.sizes.data(), strides.data(), type, device, index, &handle));
  return Tensor(handle);
}

// A jagged buffer may contain rows that belong to no sample.
inline bool has_holes(const ScanInputs& in) {
  if (!in.offsets) return false;
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  return in.lengths || offsets[0] > 0 || offsets[in.offsets->size(0) - 1] < in.input->size(0);
}

inline ScalarType dtype_of(const TensorInfo& info, const ScanInputs& in) {
  const ScalarType dtype = in.input->scalar_type();
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  return info.note == Note::kAccumulated && half ? ScalarType::Float : dtype;
}

// A device's function for a new sequence. If a caller sees the sequence, steps that no sample runs are 0; if only
// backward reads it, they stay uninitialized.
using NewSequence = Tensor (*)(const ScanInputs&, const Shape&, ScalarType, bool seen);

inline PerResult<OptionalTensor> new_results(const ScanInputs& in, const ScanSizes& sizes, const ScanFlags& flags,
                                             NewSequence new_sequence) {
  const auto [save, recompute, all_states] = flags;
  const PerResult<bool> wanted{
      .y = true, .h_n = true, .c_n = true, .gates = save && !recompute, .cells = save || all_states};
  const PerResult<bool> seen{.y = true, .h_n = true, .c_n = true, .gates = false, .cells = all_states};
  PerResult<OptionalTensor> results;
  for_each_result(
      [&](const TensorInfo& info, OptionalTensor& result, bool is_wanted, bool is_seen) {
        const ScalarType dtype = dtype_of(info, in);
        const Shape shape = shape_of(info, in, sizes, false);
        if (!is_wanted || !info.belongs_to(in.facts))
          result = empty(*in.input, {0}, dtype);
        else if (info.role == Role::kSequence)
          result = new_sequence(in, shape, dtype, is_seen);
        else
          result = empty(*in.input, shape);
      },
      results, wanted, seen);
  return results;
}

inline PerTensor<OptionalTensor> new_gradients(const ScanInputs& in, const ScanSizes& sizes,
                                               const PerTensor<bool>& needs, NewSequence new_sequence) {
  PerTensor<OptionalTensor> gradients;
  for_each_tensor(
      [&](const TensorInfo& info, OptionalTensor& gradient, const OptionalTensor& tensor, bool needed) {
        const Shape shape = shape_of(info, in, sizes, in.groups > 0);
        if (!tensor || !needed)
          gradient = empty(*in.input, {0});
        else if (info.role == Role::kSequence)
          gradient = new_sequence(in, shape, in.input->scalar_type(), true);
        else
          gradient = empty(*in.input, shape);
      },
      gradients, in, needs);
  return gradients;
}

// --- from tensors to the boundary ---

inline void check_saved(const ScanInputs& in, const ScanSizes& sizes, const ScanSaved& saved) {
  const auto check = [&](const TensorInfo& info, const OptionalTensor& tensor, const char* name) {
    check_like(*tensor, name, dtype_of(info, in), *in.input);
    check_shape(*tensor, name, shape_of(info, in, sizes, false));
  };
  for_each_result(
      [&](const TensorInfo& info, const OptionalTensor& result, const OptionalTensor& grad) {
        if (grad) check(info, grad, ("grad_" + std::string(info.name)).c_str());
        if (!result) return;
        STD_TORCH_CHECK(result->is_contiguous(), "fastrnn: ", info.name, " must be as scan returned it");
        const bool recompute = !info.differentiable() && result->dim() == 1;  // the gates are absent
        if (recompute)
          check_shape(*result, info.name, {0});
        else
          check(info, result, info.name);
      },
      saved.results, saved.grads);
}

// Returns the params of one group's forward pass, without the schedule.
template <class Params>
Params forward_params(const ScanInputs& in, const ScanSizes& sizes, const PerResult<OptionalTensor>& results,
                      RowStarts starts, int64_t group) {
  using S = typename Params::Storage;
  Params p = scan_params<Params>(in, sizes, starts, group);
  p.y = sequence<S>(results.y, starts);
  p.gates = sequence<S>(results.gates, starts);
  p.cells = sequence<Accumulate<S>>(results.cells, starts);
  p.h_n = matrix<S>(results.h_n);
  p.c_n = matrix<S>(results.c_n);
  return p;
}

// Views what the forward pass wrote. The data are asked for as const: asking for writable data would copy a
// copy-on-write tensor.
template <class S>
Sequence<S> written_sequence(const OptionalTensor& tensor, RowStarts starts) {
  const Sequence<const S> read = sequence<const S>(tensor, starts);
  return {const_cast<S*>(read.data), read.step_start,    read.sample_start,
          read.step_stride,          read.sample_stride, read.col_stride};
}

// Returns the params of one group's backward pass, without the schedule.
template <class Params>
Params backward_params(const ScanInputs& in, const ScanSizes& sizes, const ScanSaved& saved, RowStarts starts,
                       int64_t group) {
  using S = typename Params::Storage;
  Params p = scan_params<Params>(in, sizes, starts, group);
  p.y = written_sequence<S>(saved.results.y, starts);
  p.gates = written_sequence<S>(saved.results.gates, starts);
  p.cells = written_sequence<Accumulate<S>>(saved.results.cells, starts);
  return p;
}

template <class S>
ScanGradients<S> scan_gradients(const ScanSaved& saved, const PerTensor<OptionalTensor>& gradients, RowStarts starts,
                                int64_t group, int64_t groups) {
  ScanGradients<S> d;
  static_cast<ScanTensors<S>&>(d) = views_of<S>(gradients, starts, group);
  d.y = sequence<const S>(saved.grads.y, starts);
  d.cells = sequence<const Accumulate<S>>(saved.grads.cells, starts);
  d.h_n = matrix<const S>(saved.grads.h_n);
  d.c_n = matrix<const S>(saved.grads.c_n);
  d.groups = std::max<int64_t>(1, groups);
  return d;
}

// Groups with weights of their own are independent scans. Groups that share their weights are one scan, whose weight
// gradients lie one group's after the other's.
inline bool has_own_weights(const ScanInputs& in) {
  bool own = false;
  for_each_tensor(
      [&](const TensorInfo& info, const OptionalTensor& tensor) {
        own |= info.is_weight() && tensor && tensor->dim() > info.weight_rank();
      },
      in);
  return own;
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
