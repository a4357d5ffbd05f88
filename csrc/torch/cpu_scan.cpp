// The op on CPU: from tensors to the kernels of one instruction set, and the threads they run on.
#include "torch/cpu_scan.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <exception>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/tuning.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {
namespace {

std::string available_instruction_sets() { return instruction_sets(true); }

std::string current_instruction_set() { return std::string(instruction_set().name); }

// Calls f(samples, group, schedule, team) once for all samples, where the caller may ask for one thread, or for each
// group if groups have weights of their own: those are independent scans, which run side by side if there are at least
// as many groups as threads.
template <class F>
void for_groups(const ScanInputs& in, const ScanSizes& sizes, bool on_one_thread, F&& f) {
  if (!has_own_weights(in)) {
    const HostSchedule host(in, sizes, {});
    return f(Samples{}, 0, host.schedule, on_one_thread ? team_of(1) : present_team_for(sizes, host.rows));
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

int64_t cpu_near_bytes() { return static_cast<int64_t>(tuning().near_bytes()); }

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

ScanSizes checked_sizes(const ScanInputs& in) {
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  return sizes;
}

// Calls f(kernels, starts, samples, group, schedule, team) for what for_groups gives.
template <class F>
void run_groups(const ScanInputs& in, const ScanSizes& sizes, const InstructionSet& set, bool on_one_thread, F&& f) {
  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  dispatch_storage(in, sizes, set, [&]<class S>() {
    const Kernels<S>& kernels = kernels_for<S>(in.cell, set);
    for_groups(in, sizes, on_one_thread, [&](const auto&... of_group) { f(kernels, starts, of_group...); });
  });
}

// The forward pass of a direction. Its results are allocated first, and run() writes them.
struct ForwardPass {
  const ScanInputs& in;
  const ScanSizes sizes;
  const PerResult<OptionalTensor> results;
  static constexpr auto beside = forward_beside;

  ForwardPass(const ScanInputs& inputs, const ScanFlags& flags)
      : in(inputs), sizes(checked_sizes(in)), results(new_results(in, sizes, flags, new_sequence)) {}

  void run(const InstructionSet& set, bool on_one_thread) const {
    run_groups(in, sizes, set, on_one_thread,
               [&]<class S>(const Kernels<S>& kernels, RowStarts starts, Samples samples, int64_t group,
                            const Schedule& schedule, const Team& team) {
                 const auto p = forward_params<ScanParams<S>>(in, sizes, results, starts, group);
                 kernels.forward(in.cell, of_samples(p, samples, schedule), team);
               });
  }
};

// The backward pass does the same, and its results are gradients.
struct BackwardPass {
  const ScanInputs& in;
  const ScanSaved& saved;
  const ScanSizes sizes;
  const PerTensor<OptionalTensor> results;
  static constexpr auto beside = backward_beside;

  BackwardPass(const ScanInputs& inputs, const ScanSaved& of_forward)
      : in(inputs), saved(of_forward), sizes(checked_sizes(in)), results(new_results()) {}

  void run(const InstructionSet& set, bool on_one_thread) const {
    run_groups(in, sizes, set, on_one_thread,
               [&]<class S>(const Kernels<S>& kernels, RowStarts starts, Samples samples, int64_t group,
                            const Schedule& schedule, const Team& team) {
                 const auto p = backward_params<ScanParams<S>>(in, sizes, saved, starts, group);
                 const int64_t groups = samples.step > 1 ? 1 : in.groups;
                 const ScanGradients<S> d = scan_gradients<S>(saved, results, starts, group, groups);
                 kernels.backward(in.cell, of_samples(p, samples, schedule), of_samples(d, samples), team);
               });
  }

 private:
  PerTensor<OptionalTensor> new_results() const {
    check_saved(in, sizes, saved);
    return new_gradients(in, sizes, saved.needs, new_sequence);
  }
};

// Tells whether the direction of this pass and the other one of its layer run best on a thread each.
template <class Pass>
bool suit_a_thread_each(const Pass& pass, const InstructionSet& set) {
  const ScanInputs& in = pass.in;
  if (has_own_weights(in)) return false;
  const HostSchedule host(in, pass.sizes, {});
  const std::vector<int64_t> of_steps = step_starts(in);
  bool suit = false;
  dispatch_storage(in, pass.sizes, set, [&]<class S>() {
    auto p = scan_params<ScanParams<S>>(in, pass.sizes, row_starts(in, of_steps), 0);
    p.schedule = host.schedule;
    suit =
        suit_a_thread_each(kernels_for<S>(in.cell, set), in.cell, p, pass.sizes, host.rows, Pass::beside(pass.sizes));
  });
  return suit;
}

template <class Pass>
std::vector<Tensor> run_one(const Pass& pass) {
  pass.run(instruction_set(), false);
  return list_of(pass.results, pass.in.facts);
}

bool same_layer(const ScanInputs& a, const ScanSizes& of_a, const ScanInputs& b, const ScanSizes& of_b) {
  const auto sizes = [](const ScanSizes& of) { return std::tie(of.T, of.N, of.I, of.H, of.R); };
  return a.input->scalar_type() == b.input->scalar_type() && sizes(of_a) == sizes(of_b);
}

// Runs two directions of a layer. What one of them throws on another thread is thrown here, as parallel_for would not
// give its words.
template <class Pass>
std::vector<Tensor> run_both(const Pass& first, const Pass& second) {
  STD_TORCH_CHECK(same_layer(first.in, first.sizes, second.in, second.sizes),
                  "fastrnn: expected the same sizes and dtype for both directions");
  const std::array passes{&first, &second};
  const InstructionSet& set = instruction_set();
  if (suit_a_thread_each(first, set)) {
    std::array<std::exception_ptr, 2> errors;
    torch::stable::parallel_for(0, passes.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t direction = begin; direction < end; ++direction) {
        try {
          passes[direction]->run(set, true);
        } catch (...) {
          errors[direction] = std::current_exception();
        }
      }
    });
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
  } else {
    for (const Pass* pass : passes) pass->run(set, false);
  }
  std::vector<Tensor> results = list_of(first.results, first.in.facts), more = list_of(second.results, second.in.facts);
  results.insert(results.end(), more.begin(), more.end());
  return results;
}

std::vector<Tensor> scan(const ScanInputs& in, const ScanFlags& flags) { return run_one(ForwardPass(in, flags)); }

std::vector<Tensor> scan_backward(const ScanInputs& in, const ScanSaved& saved) {
  return run_one(BackwardPass(in, saved));
}

std::vector<Tensor> bidirectional_scan(const std::array<ScanInputs, 2>& in, const ScanFlags& flags) {
  return run_both(ForwardPass(in[0], flags), ForwardPass(in[1], flags));
}

std::vector<Tensor> bidirectional_scan_backward(const std::array<ScanInputs, 2>& in,
                                                const std::array<ScanSaved, 2>& saved) {
  return run_both(BackwardPass(in[0], saved[0]), BackwardPass(in[1], saved[1]));
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

using BidirectionalScan = ScanOp<bidirectional_scan, 2>;
using BidirectionalScanBackward = ScanBackwardOp<bidirectional_scan_backward, 2>;

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("scan", TORCH_BOX(&ScanOp<scan>::call));
  m.impl("scan_backward", TORCH_BOX(&ScanBackwardOp<scan_backward>::call));
  m.impl("bidirectional_scan", TORCH_BOX(&BidirectionalScan::call));
  m.impl("bidirectional_scan_backward", TORCH_BOX(&BidirectionalScanBackward::call));
  m.impl("scan_choice", TORCH_BOX(&ScanOp<scan_choice>::call));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&available_instruction_sets));
  m.impl("cpu_instruction_set", TORCH_BOX(&current_instruction_set));
  m.impl("use_cpu_instruction_set", TORCH_BOX(&use_instruction_set));
  m.impl("cpu_near_bytes", TORCH_BOX(&cpu_near_bytes));
  m.impl("cpu_rounds", TORCH_BOX(&cpu_rounds));
}

}  // namespace
}  // namespace fastrnn::cpu
