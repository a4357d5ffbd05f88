// The op on CPU: from tensors to the kernels of one instruction set, and the threads they run on.
#include "torch/cpu_scan.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/tuning.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {
namespace {

std::string available_instruction_sets() { return instruction_sets(true); }

std::string current_instruction_set() { return std::string(instruction_set().name); }

// Calls f(samples, group, schedule, team) once for all samples, or for each group if groups have weights of their own:
// those are independent scans, which run side by side if there are at least as many groups as threads.
template <class F>
void for_groups(const ScanInputs& in, const ScanSizes& sizes, F&& f) {
  if (!has_own_weights(in)) {
    const HostSchedule host(in, sizes, {});
    return f(Samples{}, 0, host.schedule, present_team_for(sizes, host.rows));
  }
  const auto run = [&](int64_t group, bool alone) {
    const Samples samples{in.groups, group};
    const HostSchedule host(in, sizes, samples);
    f(samples, group, host.schedule, alone ? team_of(1) : present_team_for(sizes, host.rows));
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

// Fewer units gain nothing from products of bfloat16.
constexpr int64_t kLeastRoundedUnits = 32;

// Whether the set has products that round float32 to bfloat16 and gains from them. Cells that are compiled later have
// no such kernels.
bool can_round(const InstructionSet& set, const std::string& cell, int64_t units) {
  return units >= kLeastRoundedUnits && is_built_in(cell) && set.provides<RoundedFloat>();
}

bool cpu_rounds(std::string cell, int64_t hidden_size) { return can_round(instruction_set(), cell, hidden_size); }

// Calls f.template operator()<S>() for the storage type of the input, or where products round their factors, for that
// type. Gradients of groups have no such kernels.
template <class F>
void dispatch_storage(const ScanInputs& in, const ScanSizes& sizes, const InstructionSet& set, F&& f) {
  const ScalarType dtype = in.input->scalar_type();
  if (in.rounds_to == "bf16" && dtype == ScalarType::Float && in.groups == 0 && can_round(set, in.cell, sizes.H))
    f.template operator()<RoundedFloat>();
  else
    dispatch_dtype(dtype, f);
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
  const InstructionSet& set = instruction_set();
  dispatch_storage(in, sizes, set, [&]<class S>() {
    const Kernels<S>& kernels = kernels_for<S>(in.cell, set);
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      const auto p = forward_params<ScanParams<S>>(in, sizes, results, starts, group);
      kernels.forward(in.cell, of_samples(p, samples, schedule), team);
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
  const InstructionSet& set = instruction_set();
  dispatch_storage(in, sizes, set, [&]<class S>() {
    const Kernels<S>& kernels = kernels_for<S>(in.cell, set);
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      const auto p = backward_params<ScanParams<S>>(in, sizes, saved, starts, group);
      const ScanGradients<S> d = scan_gradients<S>(saved, gradients, starts, group, samples.step > 1 ? 1 : in.groups);
      kernels.backward(in.cell, of_samples(p, samples, schedule), of_samples(d, samples), team);
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
  const InstructionSet& set = instruction_set();
  dispatch_storage(in, sizes, set, [&]<class S>() {
    const ScanParams<S> p =
        of_samples(scan_params<ScanParams<S>>(in, sizes, row_starts(in, of_steps), 0), {}, host.schedule);
    Choice choice = kernels_for<S>(in.cell, set).choice(in.cell, p, team);
    const bool lanes = choice.not_in_lanes.empty();
    if (lanes) choice = {.not_in_lanes = {}, .packs = false, .grid = {team.threads(), 1}};
    answer.say("instruction_set", is_built_in(in.cell) && set.provides<S>() ? set.name : cell_instruction_set(set));
    answer.say("rounds", int{std::is_same_v<S, RoundedFloat>});
    answer.say("least_rounded_units", kLeastRoundedUnits);
    answer.say("asked_for", instruction_set_was_asked_for() ? set.name : "");
    answer.say("unavailable", instruction_sets(false));
    answer.say("kernel", lanes ? "samples in lanes" : "units in lanes");
    answer.say("not_in_lanes", choice.not_in_lanes);
    answer.say("threads", side_by_side ? most_threads() : team.threads());
    answer.say("threads_allowed", most_threads());
    answer.say("forked", int{forked()});
    answer.say("row_groups", choice.grid.row_groups);
    answer.say("unit_groups", choice.grid.unit_groups);
    answer.say("packs", int{choice.packs});
    answer.say("leaves_threads", int{choice.leaves_threads});
    answer.say("forward_chunk", choice.forward_chunk);
    answer.say("backward_chunk", choice.backward_chunk);
    if (lanes) return;  // no cache size and no barrier decides anything there
    const int64_t meet = std::max<int64_t>(2, choice.grid.unit_groups);
    answer.say("tuning_forward_chunk_bytes", tuning().forward_chunk_bytes());
    answer.say("tuning_near_bytes", static_cast<int64_t>(tuning().near_bytes()));
    answer.say("tuning_barrier_threads", meet);
    answer.say("tuning_barrier_cycles", static_cast<int64_t>(barrier_cycles(meet, tuning())));
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
  m.impl("cpu_instruction_set", TORCH_BOX(&current_instruction_set));
  m.impl("use_cpu_instruction_set", TORCH_BOX(&use_instruction_set));
  m.impl("cpu_rounds", TORCH_BOX(&cpu_rounds));
}

}  // namespace
}  // namespace fastrnn::cpu
