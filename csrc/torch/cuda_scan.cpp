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

// Products want a weight's rows or its columns dense.
Tensor dense(const Tensor& weight) {
  const int64_t rows = weight.size(-2), columns = weight.size(-1);
  const bool fits =
      (weight.stride(-1) == 1 && weight.stride(-2) >= columns) || (weight.stride(-2) == 1 && weight.stride(-1) >= rows);
  return fits ? weight : contiguous(weight);
}

// What the boundary asks for beyond what the op takes.
ScanInputs dense_inputs(ScanInputs in) {
  in.input = contiguous(in.input);
  in.weight_ih = dense(in.weight_ih);
  in.weight_hh = dense(in.weight_hh);
  if (in.weight_hr) in.weight_hr = dense(*in.weight_hr);
  return in;
}

Tensor new_sequence(const ScanInputs& in, const ScanSizes& sizes, int64_t columns, ScalarType dtype, bool seen) {
  const std::vector<int64_t> shape = sequence_shape(in, sizes, columns);
  const bool cleared = seen && (in.offsets ? has_holes(in, sizes) : in.lengths.has_value());
  return cleared ? torch::stable::new_zeros(in.input, shape, dtype) : torch::stable::new_empty(in.input, shape, dtype);
}

// The numbers of a schedule on the device: what the host knows of them goes there in one tensor.
struct DeviceSchedule {
  Tensor numbers;
  OptionalTensor lengths;  // the caller's, where they are there already
  Schedule schedule;
  RowStarts starts;

  DeviceSchedule(const ScanInputs& in, const ScanSizes& sizes) {
    const auto [T, N, I, H, R, cell] = sizes;
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
    schedule = {.T = T, .N = N, .reverse = in.reverse, .reset = matrix<const uint8_t>(in.reset)};
    if (lengths && N > 0) schedule.lengths = data_of<const int64_t>(*lengths);
    if (host.empty()) return;
    numbers = torch::stable::new_empty(in.input, std::vector{static_cast<int64_t>(host.size())}, ScalarType::Long);
    int64_t* data = data_of<int64_t>(numbers);
    check(upload(host.data(), numbers.numel(), data, current_stream(in.input)));
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

// f(), whose LaunchError becomes torch's.
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
                 [&] { return plan_for(in.cell, p, direction, limits, in.tf32, forced); });
}

// ps: params, and gradients in the backward pass
template <class S, class... Ps>
void run(const ScanInputs& in, Direction direction, const ScanParams<S>& p, const Ps&... ps) {
  guarded("", [&] {
    Tensor workspace;
    const Context context{current_stream(in.input), static_cast<cublasHandle_t>(blas_handle()), in.tf32};
    plan_and_launch(
        in.cell, context, [&] { return planned(in, direction, p, device_limits()); },
        [&](int64_t bytes) {
          workspace = torch::stable::new_empty(in.input, std::vector<int64_t>{bytes}, ScalarType::Byte);
          return workspace.mutable_data_ptr();
        },
        p, ps...);
  });
}

// --- groups with weights of their own: a scan each, of dense copies, as kernels take dense rows alone ---

// A view of the samples of a group: n = group, group + groups, ... Rows of a packed input are samples, too.
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

  Tensor sequence(const Tensor& tensor, int64_t group) const {
    return tensor.dim() == 1 ? tensor : samples_of(tensor, sequence_at_, in_.groups, group);  // 1: there is none
  }
  Tensor state(const Tensor& tensor, int64_t group) const {
    return tensor.dim() == 1 ? tensor : samples_of(tensor, 0, in_.groups, group);
  }
  OptionalTensor sequence(const OptionalTensor& tensor, int64_t group) const {
    return tensor ? OptionalTensor(sequence(*tensor, group)) : tensor;
  }
  OptionalTensor state(const OptionalTensor& tensor, int64_t group) const {
    return tensor ? OptionalTensor(state(*tensor, group)) : tensor;
  }
  Tensor weight(const Tensor& tensor, int64_t rank, int64_t group) const {
    return tensor.dim() > rank ? torch::stable::select(tensor, 0, group) : tensor;
  }

  ScanInputs inputs(int64_t group) const {
    const auto weight_or_none = [&](const OptionalTensor& tensor, int64_t rank) {
      return tensor ? OptionalTensor(weight(*tensor, rank, group)) : tensor;
    };
    ScanInputs one = in_;
    one.groups = 0;
    one.input = sequence(in_.input, group);
    one.h_0 = state(in_.h_0, group);
    one.c_0 = state(in_.c_0, group);
    one.weight_ih = weight(in_.weight_ih, 2, group);
    one.weight_hh = weight(in_.weight_hh, 2, group);
    one.bias_ih = weight_or_none(in_.bias_ih, 1);
    one.bias_hh = weight_or_none(in_.bias_hh, 1);
    one.weight_hr = weight_or_none(in_.weight_hr, 2);
    one.reset_h = state(in_.reset_h, group);
    one.reset_c = state(in_.reset_c, group);
    if (in_.reset) one.reset = samples_of(*in_.reset, 1, in_.groups, group);
    if (in_.lengths) one.lengths = contiguous(samples_of(*in_.lengths, 0, in_.groups, group));
    if (in_.batch_sizes) {  // of the others, no more than of this group
      one.batch_sizes = torch::stable::new_empty(*in_.batch_sizes, in_.batch_sizes->sizes());
      const int64_t* active = in_.batch_sizes->const_data_ptr<int64_t>();
      std::transform(active, active + in_.batch_sizes->size(0), data_of<int64_t>(*one.batch_sizes),
                     [&](int64_t n) { return n / in_.groups; });
    }
    return one;
  }

 private:
  const ScanInputs& in_;
  int64_t sequence_at_;
};

void put(Tensor to, const Tensor& from) { torch::stable::copy_(to, from); }

// --- the ops ---

ScanResults scan(const ScanInputs& in, const ScanFlags& flags);
ScanGradientResults scan_backward(const ScanInputs& in, const ScanSaved& saved);

void scan_each(const ScanInputs& in, const ScanFlags& flags, const ScanResults& results) {
  const Groups groups(in);
  const auto& [y, h_n, c_n, gates, cells] = results;
  for (int64_t group = 0; group < in.groups; ++group) {
    const auto [y_1, h_n_1, c_n_1, gates_1, cells_1] = scan(groups.inputs(group), flags);
    put(groups.sequence(y, group), y_1);
    put(groups.state(h_n, group), h_n_1);
    put(groups.state(c_n, group), c_n_1);
    put(groups.sequence(gates, group), gates_1);
    put(groups.sequence(cells, group), cells_1);
  }
}

void scan_backward_each(const ScanInputs& in, const ScanSaved& saved, const ScanGradientResults& results) {
  const Groups groups(in);
  const auto& [x, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c] = results;
  const auto put_weight = [](const Tensor& all, int64_t group, const Tensor& one) {
    if (all.numel() > 0) put(torch::stable::select(all, 0, group), one);
  };
  for (int64_t group = 0; group < in.groups; ++group) {
    const ScanSaved one{groups.sequence(saved.grad_y, group),
                        groups.state(saved.grad_h_n, group),
                        groups.state(saved.grad_c_n, group),
                        groups.sequence(saved.grad_cells, group),
                        contiguous(groups.sequence(saved.y, group)),
                        contiguous(groups.sequence(saved.gates, group)),
                        contiguous(groups.sequence(saved.cells, group)),
                        saved.needs};
    const auto found = scan_backward(groups.inputs(group), one);
    put(groups.sequence(x, group), std::get<0>(found));
    put(groups.state(h_0, group), std::get<1>(found));
    put(groups.state(c_0, group), std::get<2>(found));
    put_weight(weight_ih, group, std::get<3>(found));
    put_weight(weight_hh, group, std::get<4>(found));
    put_weight(bias_ih, group, std::get<5>(found));
    put_weight(bias_hh, group, std::get<6>(found));
    put_weight(weight_hr, group, std::get<7>(found));
    put(groups.state(reset_h, group), std::get<8>(found));
    put(groups.state(reset_c, group), std::get<9>(found));
  }
}

ScanResults scan(const ScanInputs& given, const ScanFlags& flags) {
  const DeviceGuard guard(given.input.get_device_index());
  const ScanSizes sizes = check_sizes(given);
  check_inputs(given, sizes);
  const ScanResults results = new_results(given, sizes, flags, new_sequence);
  if (has_own_weights(given)) {
    scan_each(given, flags, results);
    return results;
  }
  const ScanInputs in = dense_inputs(given);
  const DeviceSchedule device(in, sizes);
  dispatch_real_dtype(in.input, [&]<class S>() {
    ScanParams<S> p = forward_params<S>(in, sizes, results, device.starts, 0);
    p.schedule = device.schedule;
    run(in, Direction::kForward, p);
  });
  return results;
}

ScanGradientResults scan_backward(const ScanInputs& given, const ScanSaved& given_saved) {
  const DeviceGuard guard(given.input.get_device_index());
  const ScanSizes sizes = check_sizes(given);
  check_inputs(given, sizes);
  check_saved(given, sizes, given_saved);
  const ScanGradientResults results = new_gradients(given, sizes, given_saved.needs, new_sequence);
  if (has_own_weights(given)) {
    scan_backward_each(given, given_saved, results);
    return results;
  }
  const ScanInputs in = dense_inputs(given);
  ScanSaved saved = given_saved;
  saved.grad_y = contiguous_or_none(saved.grad_y);
  saved.grad_cells = contiguous_or_none(saved.grad_cells);
  const DeviceSchedule device(in, sizes);
  dispatch_real_dtype(in.input, [&]<class S>() {
    ScanParams<S> p = backward_params<S>(in, sizes, saved, device.starts, 0);
    p.schedule = device.schedule;
    run(in, Direction::kBackward, p, scan_gradients<S>(saved, results, device.starts, 0, in.groups));
  });
  return results;
}

// Steps run by all samples; of lengths on the device, as many as there may be.
int64_t rows_of(const ScanInputs& in, const ScanSizes& sizes) {
  if (in.batch_sizes) return in.input.size(0);
  int64_t rows = 0;
  for (int64_t n = 0; n < sizes.N; ++n)
    rows += in.offsets                           ? jagged_length(in, n)
            : in.lengths && in.lengths->is_cpu() ? in.lengths->const_data_ptr<int64_t>()[n]
                                                 : sizes.T;
  return rows;
}

// What scan would do with these arguments. Of groups with weights of their own: with each.
std::string scan_choice(const ScanInputs& given, const ScanFlags& flags) {
  const DeviceGuard guard(given.input.get_device_index());
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
  dispatch_real_dtype(in.input, [&]<class S>() {
    ScanParams<S> p = scan_params<S>(in, sizes, device.starts, 0);
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
