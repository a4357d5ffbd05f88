// The op on CUDA: from tensors to a plan, a workspace and a launch. Nothing here waits for the device, and all memory
// is of torch's allocator: a CUDA graph may capture it.
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <numeric>
#include <string_view>
#include <vector>

#include "cuda/fill.h"
#include "cuda/launch.h"
#include "torch/cuda_device.h"
#include "torch/op.h"

namespace fastrnn::cuda {
namespace {

using torch::stable::contiguous;

OptionalTensor contiguous_or_none(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(contiguous(*tensor)) : tensor;
}

// Matrix products need a weight whose rows or columns are dense.
Tensor dense(const Tensor& weight) {
  const int64_t rows = weight.size(-2), columns = weight.size(-1);
  const bool fits =
      (weight.stride(-1) == 1 && weight.stride(-2) >= columns) || (weight.stride(-2) == 1 && weight.stride(-1) >= rows);
  return fits ? weight : contiguous(weight);
}

// The boundary asks for a dense input and dense weights, the op does not.
ScanInputs dense_inputs(ScanInputs in) {
  for_each_tensor(
      [](const TensorInfo& info, OptionalTensor& tensor) {
        if (info.role == Role::kSequence) tensor = contiguous_or_none(tensor);
        if (info.role == Role::kMatrix && tensor) tensor = dense(*tensor);
      },
      in);
  return in;
}

Tensor new_sequence(const ScanInputs& in, const Shape& shape, ScalarType dtype, bool seen) {
  const bool cleared = seen && (in.offsets ? has_holes(in) : in.lengths.has_value());
  return cleared ? torch::stable::new_zeros(*in.input, shape.ref(), dtype) : empty(*in.input, shape, dtype);
}

// Owns a schedule's arrays on the device. What the host knows of them is copied there as one tensor.
struct DeviceSchedule {
  Tensor numbers;
  OptionalTensor lengths;  // the caller's, where they are there already
  Schedule schedule;
  RowStarts starts;

  DeviceSchedule(const ScanInputs& in, const ScanSizes& sizes) {
    const int64_t T = sizes.T, N = sizes.N;
    std::vector<int64_t> host;  // lengths [N], then where rows start: of steps [T], or of samples [N]
    if (in.batch_sizes) {
      const int64_t* active = in.batch_sizes->const_data_ptr<int64_t>();
      host.assign(N, 0);
      for (int64_t t = T, n = 0; t > 0; --t)
        for (; n < active[t - 1]; ++n) host[n] = t;
      host.resize(N + T);
      std::exclusive_scan(active, active + T, host.begin() + N, int64_t{0});
    } else if (in.offsets) {
      for (int64_t n = 0; n < N; ++n) host.push_back(jagged_length(in, n));
      const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
      host.insert(host.end(), offsets, offsets + N);
    } else if (in.lengths && in.lengths->is_cpu()) {
      const int64_t* given = in.lengths->const_data_ptr<int64_t>();
      host.assign(given, given + N);
    } else {
      lengths = contiguous_or_none(in.lengths);
    }
    schedule.T = T;
    schedule.N = N;
    schedule.reverse = in.reverse;
    schedule.reset = matrix<const uint8_t>(in.reset);
    if (lengths && N > 0) schedule.lengths = data_of<const int64_t>(*lengths);
    if (host.empty()) return;
    numbers = empty(*in.input, {static_cast<int64_t>(host.size())}, ScalarType::Long);
    int64_t* data = data_of<int64_t>(numbers);
    check(upload(host.data(), numbers.numel(), data, current_stream(*in.input)));
    schedule.lengths = data;
    if (in.batch_sizes) starts.of_steps = data + N;
    if (in.offsets) starts.of_samples = data + N;
  }
};

std::string_view forced_regime() {
  const char* forced = std::getenv("FASTRNN_CUDA_REGIME");
  if (!forced || !*forced) return {};
  const std::string_view regime = forced_by(forced).regime;
  for (const Regime each : {Regime::kBlockResident, Regime::kGridResident, Regime::kStepwise})
    if (regime == name(each)) return forced;
  STD_TORCH_CHECK(false, "fastrnn: FASTRNN_CUDA_REGIME is ", forced,
                  ", expected block-resident, grid-resident, grid-resident/8, grid-resident/16 or stepwise");
}

// Returns f(); a LaunchError becomes torch's error.
template <class F>
auto guarded(std::string_view what, F&& f) {
  try {
    return f();
  } catch (const LaunchError& error) {
    STD_TORCH_CHECK(false, "fastrnn: ", what, error.what());
  }
}

template <class S>
Plan planned(const ScanInputs& in, Direction direction, const ScanParams<S>& p, const DeviceLimits& limits) {
  const std::string_view forced = forced_regime();
  return guarded(forced.empty() ? "" : "what FASTRNN_CUDA_REGIME asks for cannot run this: ",
                 [&] { return plan_for(in.cell, p, direction, limits, in.rounds_to == "tf32", forced); });
}

// `ps` are the params, and in the backward pass the gradients.
template <class S, class... Ps>
void run(const ScanInputs& in, Direction direction, const ScanParams<S>& p, const Ps&... ps) {
  guarded("", [&] {
    Tensor workspace;
    const Context context{current_stream(*in.input), static_cast<cublasHandle_t>(blas_handle()),
                          in.rounds_to == "tf32"};
    plan_and_launch(
        in.cell, context, [&] { return planned(in, direction, p, device_limits()); },
        [&](int64_t bytes) {
          workspace = empty(*in.input, {bytes}, ScalarType::Byte);
          return workspace.mutable_data_ptr();
        },
        p, ps...);
  });
}

// --- groups with weights of their own: one scan for each, of dense copies, since kernels take only dense rows ---

// Views the samples of a group: n = group, group + groups, ... In a packed input, rows take the place of samples.
Tensor samples_of(const Tensor& tensor, int64_t at, int64_t groups, int64_t group) {
  const auto sizes = tensor.sizes();
  std::vector<int64_t> shape(sizes.begin(), sizes.end());
  shape[at] /= groups;
  shape.insert(shape.begin() + at + 1, groups);
  return torch::stable::select(torch::stable::reshape(tensor, shape), at + 1, group);
}

class Groups {
 public:
  explicit Groups(const ScanInputs& in) : in_(in), sequence_at_(in.rows_input() ? 0 : 1) {
    if (!in.batch_sizes) return;
    const int64_t* active = in.batch_sizes->const_data_ptr<int64_t>();
    for (int64_t t = 0; t < in.batch_sizes->size(0); ++t)
      STD_TORCH_CHECK(active[t] % in.groups == 0, "fastrnn: batch_sizes[", t, "] is no multiple of ", in.groups,
                      " groups");
  }

  // What a group has of a tensor; a weight may be shared.
  OptionalTensor part(const TensorInfo& info, const OptionalTensor& tensor, int64_t group) const {
    if (!tensor || tensor->numel() == 0) return tensor;
    switch (info.role) {
      case Role::kSequence: return samples_of(*tensor, sequence_at_, in_.groups, group);
      case Role::kState: return samples_of(*tensor, 0, in_.groups, group);
      default: return tensor->dim() > info.weight_rank() ? torch::stable::select(*tensor, 0, group) : *tensor;
    }
  }

  ScanInputs inputs(int64_t group) const {
    ScanInputs of_group = in_;
    of_group.groups = 0;
    for_each_tensor([&](const TensorInfo& info, OptionalTensor& tensor) { tensor = part(info, tensor, group); },
                    of_group);
    if (in_.reset) of_group.reset = samples_of(*in_.reset, 1, in_.groups, group);
    if (in_.lengths) of_group.lengths = contiguous(samples_of(*in_.lengths, 0, in_.groups, group));
    if (in_.batch_sizes) {  // every group has as many samples at a step
      of_group.batch_sizes = torch::stable::new_empty(*in_.batch_sizes, in_.batch_sizes->sizes());
      const int64_t* active = in_.batch_sizes->const_data_ptr<int64_t>();
      std::transform(active, active + in_.batch_sizes->size(0), data_of<int64_t>(*of_group.batch_sizes),
                     [&](int64_t n) { return n / in_.groups; });
    }
    return of_group;
  }

  // Copies what a scan of the group returned to where it lies in the result of all.
  auto put(int64_t group) const {
    return [this, group](const TensorInfo& info, const OptionalTensor& of_all, const OptionalTensor& of_group) {
      if (of_all && of_all->numel() > 0) {
        Tensor to = *part(info, of_all, group);
        torch::stable::copy_(to, *of_group);
      }
    };
  }

 private:
  const ScanInputs& in_;
  int64_t sequence_at_;
};

// --- the ops ---

PerResult<OptionalTensor> forward(const ScanInputs& in, const ScanFlags& flags) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const PerResult<OptionalTensor> results = new_results(in, sizes, flags, new_sequence);
  if (has_own_weights(in)) {
    const Groups groups(in);
    for (int64_t group = 0; group < in.groups; ++group)
      for_each_result(groups.put(group), results, forward(groups.inputs(group), flags));
    return results;
  }
  const ScanInputs dense = dense_inputs(in);
  const DeviceSchedule device(dense, sizes);
  dispatch_real_dtype(dense.input->scalar_type(), [&]<class S>() {
    auto p = forward_params<ScanParams<S>>(dense, sizes, results, device.starts, 0);
    p.schedule = device.schedule;
    run(dense, Direction::kForward, p);
  });
  return results;
}

PerTensor<OptionalTensor> backward(const ScanInputs& in, const ScanSaved& saved) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  check_saved(in, sizes, saved);
  const PerTensor<OptionalTensor> gradients = new_gradients(in, sizes, saved.needs, new_sequence);
  if (has_own_weights(in)) {
    const Groups groups(in);
    for (int64_t group = 0; group < in.groups; ++group) {
      ScanSaved of_group;
      of_group.needs = saved.needs;
      const auto take = [&](const TensorInfo& info, OptionalTensor& to, const OptionalTensor& from) {
        to = contiguous_or_none(groups.part(info, from, group));
      };
      for_each_result(take, of_group.grads, saved.grads);
      for_each_result(take, of_group.results, saved.results);
      for_each_tensor(groups.put(group), gradients, backward(groups.inputs(group), of_group));
    }
    return gradients;
  }
  const ScanInputs dense = dense_inputs(in);
  ScanSaved dense_saved = saved;
  for_each_result(
      [](const TensorInfo& info, OptionalTensor& grad) {
        if (info.role == Role::kSequence) grad = contiguous_or_none(grad);
      },
      dense_saved.grads);
  const DeviceSchedule device(dense, sizes);
  dispatch_real_dtype(dense.input->scalar_type(), [&]<class S>() {
    auto p = backward_params<ScanParams<S>>(dense, sizes, dense_saved, device.starts, 0);
    p.schedule = device.schedule;
    run(dense, Direction::kBackward, p, scan_gradients<S>(dense_saved, gradients, device.starts, 0, in.groups));
  });
  return gradients;
}

std::vector<Tensor> scan(const ScanInputs& in, const ScanFlags& flags) {
  const DeviceGuard guard(in.input->get_device_index());
  return list_of(forward(in, flags), in.facts);
}

std::vector<Tensor> scan_backward(const ScanInputs& in, const ScanSaved& saved) {
  const DeviceGuard guard(in.input->get_device_index());
  return list_of(backward(in, saved), in.facts);
}

// Steps run by all samples, or the most there may be if lengths are on the device.
int64_t rows_of(const ScanInputs& in, const ScanSizes& sizes) {
  if (in.batch_sizes) return in.input->size(0);
  int64_t rows = 0;
  for (int64_t n = 0; n < sizes.N; ++n)
    rows += in.offsets                           ? jagged_length(in, n)
            : in.lengths && in.lengths->is_cpu() ? in.lengths->const_data_ptr<int64_t>()[n]
                                                 : sizes.T;
  return rows;
}

// What scan would do with these arguments, or with those of each group if groups have weights of their own.
std::string scan_choice(const ScanInputs& given, const ScanFlags& flags) {
  const DeviceGuard guard(given.input->get_device_index());
  ScanSizes sizes = check_sizes(given);
  check_inputs(given, sizes);
  Answer answer;
  answer.say_sizes(sizes, rows_of(given, sizes));
  const ScanInputs in = dense_inputs(has_own_weights(given) ? Groups(given).inputs(0) : given);
  sizes = check_sizes(in);
  const DeviceLimits limits = guarded("", device_limits);
  answer.say("instruction_set", "sm_" + std::to_string(limits.compute_capability));
  answer.say("forced", forced_regime());
  const DeviceSchedule device(in, sizes);
  const auto tell = [&](const Plan& plan, const std::string& pass) {
    const auto say = [&](const char* key, const auto& value) { answer.say(pass + "." + key, value); };
    say("regime", name(plan.regime));
    say("unit_blocks", plan.unit_blocks);
    say("column_blocks", plan.column_blocks);
    say("units", plan.units);
    say("columns", plan.columns);
    say("threads", plan.threads);
    say("shared_bytes", plan.shared_bytes);
    say("exchange_bytes", plan.exchange_bytes);
    say("steps", plan.steps);
    say("step_us", plan.step_us);
    std::string refused = refusals(plan);  // a line each
    std::replace(refused.begin(), refused.end(), '\n', ';');
    say("refused", refused);
  };
  dispatch_real_dtype(in.input->scalar_type(), [&]<class S>() {
    auto p = scan_params<ScanParams<S>>(in, sizes, device.starts, 0);
    p.schedule = device.schedule;
    tell(planned(in, Direction::kForward, p, limits), "forward");
    if (flags.save) tell(planned(in, Direction::kBackward, p, limits), "backward");
  });
  return answer.text();
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
  m.impl("scan", TORCH_BOX(&ScanOp<scan>::call));
  m.impl("scan_backward", TORCH_BOX(&ScanBackwardOp<scan_backward>::call));
  m.impl("scan_choice", TORCH_BOX(&ScanOp<scan_choice>::call));
}

}  // namespace
}  // namespace fastrnn::cuda
