// The op on CPU: from tensors to the kernels of one instruction set, and the threads they run on.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {
namespace {

std::string available_instruction_sets() { return instruction_sets(true); }

constexpr int64_t kClearedAtOnce = int64_t{1} << 20;  // bytes of a sequence that are worth a thread

// Below this a fork and join costs more than it saves.
constexpr double kMinFlopPerThread = 1e5;

Team team_of(int64_t threads) {
  return {threads, [](int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
            torch::stable::parallel_for(0, parts, 1, body);
          }};
}

// `rows` is the number of steps that all samples run together.
Team team_for(const ScanSizes& sizes, int64_t rows) {
  const double flop = 2.0 * rows * sizes.cell.gates * sizes.H * (sizes.I + sizes.R);
  const int64_t useful = std::max<int64_t>(1, static_cast<int64_t>(flop / kMinFlopPerThread));
  return team_of(std::min(most_threads(), useful));
}

// Samples first, first + step, ... of a batch: all of them, or those of a group.
struct Samples {
  int64_t step = 1, first = 0;

  int64_t count(int64_t rows) const { return std::max<int64_t>(0, (rows - first + step - 1) / step); }
};

// Sorts some samples by length, longest first, and owns the arrays that their Schedule points to.
struct HostSchedule {
  std::vector<int64_t> order, active;
  Schedule schedule;
  int64_t rows;  // steps run by all of them

  HostSchedule(const ScanInputs& in, const ScanSizes& sizes, Samples samples) {
    const Matrix<const uint8_t> reset = matrix<const uint8_t>(in.reset);
    schedule.T = sizes.T;
    schedule.N = samples.count(sizes.N);
    schedule.reverse = in.reverse;
    schedule.reset = reset.transposed().every(samples.step, samples.first).transposed();
    rows = schedule.T * schedule.N;
    if (in.batch_sizes) {
      const int64_t* batch_sizes = in.batch_sizes->const_data_ptr<int64_t>();
      active.resize(sizes.T);
      std::transform(batch_sizes, batch_sizes + sizes.T, active.begin(), [&](int64_t n) { return samples.count(n); });
      schedule.active = active.data();
      rows = std::reduce(active.begin(), active.end());
    } else if ((in.lengths || in.offsets) && schedule.N > 0) {
      std::vector<int64_t> lengths(schedule.N);
      for (int64_t i = 0; i < schedule.N; ++i) {
        const int64_t n = samples.first + i * samples.step;
        lengths[i] = in.offsets ? jagged_length(in, n) : in.lengths->const_data_ptr<int64_t>()[n];
      }
      sort_by_length(lengths);
    }
  }
  HostSchedule(const HostSchedule&) = delete;

 private:
  void sort_by_length(const std::vector<int64_t>& lengths) {
    order.resize(schedule.N);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    active.reserve(schedule.T);
    for (int64_t t = 0, running = schedule.N; t < schedule.T; ++t) {
      while (running > 0 && lengths[order[running - 1]] <= t) --running;
      active.push_back(running);
    }
    rows = std::reduce(active.begin(), active.end());
    schedule.order = order.data();
    schedule.active = active.data();
  }
};

// Calls f(samples, group, schedule, team) once for all samples, or for each group if groups have weights of their own:
// those are independent scans, which run side by side if there are at least as many groups as threads.
template <class F>
void for_groups(const ScanInputs& in, const ScanSizes& sizes, F&& f) {
  if (!has_own_weights(in)) {
    const HostSchedule host(in, sizes, {});
    return f(Samples{}, 0, host.schedule, team_for(sizes, host.rows));
  }
  const auto run = [&](int64_t group, bool alone) {
    const Samples samples{in.groups, group};
    const HostSchedule host(in, sizes, samples);
    f(samples, group, host.schedule, alone ? team_of(1) : team_for(sizes, host.rows));
  };
  const int64_t threads = most_threads();
  if (threads == 1 || in.groups < threads) {
    for (int64_t group = 0; group < in.groups; ++group) run(group, false);
  } else {
    torch::stable::parallel_for(0, in.groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) run(group, true);
    });
  }
}

// Returns the row at which each step of a packed input starts.
std::vector<int64_t> step_starts(const ScanInputs& in) {
  std::vector<int64_t> starts;
  if (!in.batch_sizes) return starts;
  const int64_t* active = in.batch_sizes->const_data_ptr<int64_t>();
  starts.resize(in.batch_sizes->size(0));
  std::exclusive_scan(active, active + starts.size(), starts.begin(), int64_t{0});
  return starts;
}

RowStarts row_starts(const ScanInputs& in, const std::vector<int64_t>& of_steps) {
  return {in.batch_sizes ? of_steps.data() : nullptr, in.offsets ? in.offsets->const_data_ptr<int64_t>() : nullptr};
}

// A fresh sequence of small pages takes 256 faults a MB, which would cost as much as the arithmetic.
Tensor with_huge_pages(Tensor tensor) {
  if (tensor.numel() > 0) prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// Clears the rows of a padded sequence that lie past a sample's length. Clearing all of it would touch every page
// twice.
void clear_padding(Tensor& padded, const int64_t* lengths) {
  const int64_t T = padded.size(0), N = padded.size(1);
  const int64_t row = padded.size(2) * padded.element_size();
  char* data = static_cast<char*>(padded.mutable_data_ptr());
  for_ranges(T, std::max<int64_t>(1, kClearedAtOnce / std::max<int64_t>(1, N * row)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t n = 0; n < N; ++n)
        if (t >= lengths[n]) std::memset(data + (t * N + n) * row, 0, row);
  });
}

Tensor new_sequence(const ScanInputs& in, const Shape& shape, ScalarType dtype, bool seen) {
  if (seen && has_holes(in)) return torch::stable::new_zeros(*in.input, shape.ref(), dtype);
  Tensor sequence = with_huge_pages(empty(*in.input, shape, dtype));
  const bool padded = in.lengths && !in.offsets && sequence.numel() > 0;
  if (seen && padded) clear_padding(sequence, in.lengths->const_data_ptr<int64_t>());
  return sequence;
}

template <class S>
ScanParams<S> of_samples(ScanParams<S> p, Samples samples, const Schedule& schedule) {
  const auto take = [&](auto&... views) { ((views = views.every(samples.step, samples.first)), ...); };
  if (samples.step > 1) take(static_cast<ScanTensors<const S>&>(p), p.y, p.gates, p.cells, p.h_n, p.c_n);
  p.schedule = schedule;
  return p;
}

template <class S>
ScanGradients<S> of_samples(ScanGradients<S> d, Samples samples) {
  const auto take = [&](auto&... views) { ((views = views.every(samples.step, samples.first)), ...); };
  if (samples.step > 1) take(static_cast<ScanTensors<S>&>(d), d.y, d.cells, d.h_n, d.c_n);
  return d;
}

std::vector<Tensor> scan(const ScanInputs& in, const ScanFlags& flags) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const PerResult<OptionalTensor> results = new_results(in, sizes, flags, new_sequence);
  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  dispatch_dtype(*in.input, [&]<class S>() {
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      const auto p = forward_params<ScanParams<S>>(in, sizes, results, starts, group);
      kernels<S>().forward(in.cell, of_samples(p, samples, schedule), team);
    });
  });
  return list_of(results, in.facts);
}

std::vector<Tensor> scan_backward(const ScanInputs& in, const ScanSaved& saved) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  check_saved(in, sizes, saved);
  const PerTensor<OptionalTensor> gradients = new_gradients(in, sizes, saved.needs, new_sequence);
  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  dispatch_dtype(*in.input, [&]<class S>() {
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      const auto p = backward_params<ScanParams<S>>(in, sizes, saved, starts, group);
      const ScanGradients<S> d = scan_gradients<S>(saved, gradients, starts, group, samples.step > 1 ? 1 : in.groups);
      kernels<S>().backward(in.cell, of_samples(p, samples, schedule), of_samples(d, samples), team);
    });
  });
  return list_of(gradients, in.facts);
}

// What scan would do with these arguments, or with those of each group if groups have weights of their own.
std::string scan_choice(const ScanInputs& in, const ScanFlags&) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const std::vector<int64_t> of_steps = step_starts(in);
  const bool separate = has_own_weights(in);
  const HostSchedule host(in, sizes, separate ? Samples{in.groups, 0} : Samples{});
  const bool side_by_side = separate && in.groups >= most_threads();
  const Team team = side_by_side ? team_of(1) : team_for(sizes, host.rows);
  Answer answer;
  dispatch_dtype(*in.input, [&]<class S>() {
    const ScanParams<S> p =
        of_samples(scan_params<ScanParams<S>>(in, sizes, row_starts(in, of_steps), 0), {}, host.schedule);
    const InstructionSet& set = instruction_set();
    Choice choice = kernels<S>().choice(in.cell, p, team);
    const bool lanes = choice.not_in_lanes.empty();
    if (lanes) choice = {.not_in_lanes = {}, .packs = false, .grid = {team.threads(), 1}};
    answer.say("instruction_set", set.provides<S>() ? set.name : set.rest->name);
    answer.say("unavailable", instruction_sets(false));
    answer.say("kernel", lanes ? "samples in lanes" : "units in lanes");
    answer.say("not_in_lanes", choice.not_in_lanes);
    answer.say("threads", side_by_side ? most_threads() : team.threads());
    answer.say("threads_allowed", most_threads());
    answer.say("forked", int{forked()});
    answer.say("row_groups", choice.grid.row_groups);
    answer.say("unit_groups", choice.grid.unit_groups);
    answer.say("packs", int{choice.packs});
    answer.say("forward_chunk", choice.forward_chunk);
    answer.say("backward_chunk", choice.backward_chunk);
  });
  answer.say_sizes(sizes, separate ? host.rows * in.groups : host.rows);
  return answer.text();
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("scan", TORCH_BOX(&ScanOp<scan>::call));
  m.impl("scan_backward", TORCH_BOX(&ScanBackwardOp<scan_backward>::call));
  m.impl("scan_choice", TORCH_BOX(&ScanOp<scan_choice>::call));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&available_instruction_sets));
}

}  // namespace
}  // namespace fastrnn::cpu
