// The op on CPU: from tensors to the kernels of one instruction set, and the threads they run on.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "cpu/machine.h"

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

// rows: steps run by all samples
Team team_for(const ScanSizes& sizes, int64_t rows) {
  const double flop = 2.0 * rows * sizes.cell.gates * sizes.H * (sizes.I + sizes.R);
  const int64_t useful = std::max<int64_t>(1, static_cast<int64_t>(flop / kMinFlopPerThread));
  return team_of(std::min(most_threads(), useful));
}

// Samples first, first + step, ... of a batch: all of them, or a group.
struct Samples {
  int64_t step = 1, first = 0;

  int64_t count(int64_t rows) const { return std::max<int64_t>(0, (rows - first + step - 1) / step); }
};

// The rows of some samples, by length and longest first, and the arrays a Schedule points to.
struct HostSchedule {
  std::vector<int64_t> order, active;
  Schedule schedule;
  int64_t rows;  // steps run by all of them

  HostSchedule(const ScanInputs& in, const ScanSizes& sizes, Samples samples) {
    const Matrix<const uint8_t> reset = matrix<const uint8_t>(in.reset);
    schedule = {.T = sizes.T,
                .N = samples.count(sizes.N),
                .reverse = in.reverse,
                .reset = reset.transposed().every(samples.step, samples.first).transposed()};
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

// Groups have weights of their own.
bool has_own_weights(const ScanInputs& in) {
  const auto own = [](const OptionalTensor& weight, int64_t rank) { return weight && weight->dim() > rank; };
  return own(in.weight_ih, 2) || own(in.weight_hh, 2) || own(in.bias_ih, 1) || own(in.bias_hh, 1) ||
         own(in.weight_hr, 2);
}

// f(samples, group, host schedule, team) once for all samples, or for each group of them with weights of its own: those
// are scans that know nothing of each other, side by side where threads last.
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

// Where each step of a packed input starts.
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

// An op cannot return None: what there is not comes back with no elements.
Tensor empty_like_dtype(const Tensor& like, std::vector<int64_t> shape, bool wanted = true,
                        std::optional<ScalarType> dtype = std::nullopt) {
  if (!wanted) shape = {0};
  return torch::stable::new_empty(like, shape, dtype);
}

// A sequence can be large, and fresh: 256 page faults a MB would cost as much as the arithmetic.
Tensor with_huge_pages(Tensor tensor) {
  if (tensor.numel() > 0) prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

std::vector<int64_t> sequence_shape(const ScanInputs& in, const ScanSizes& sizes, int64_t columns) {
  if (in.rows_input()) return {in.input.size(0), columns};
  return {sizes.T, sizes.N, columns};
}

// Of a jagged sequence, there are rows that are no sample's step.
bool has_holes(const ScanInputs& in, const ScanSizes& sizes) {
  if (!in.offsets) return false;
  const int64_t* offsets = in.offsets->const_data_ptr<int64_t>();
  return in.lengths || offsets[0] > 0 || offsets[sizes.N] < in.input.size(0);
}

// Clears the rows of a padded sequence that lie past a sample's length: to clear all of it would cost a fresh page for
// every step that is about to be written.
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

// A sequence that a caller sees: steps that no sample runs are 0.
Tensor new_sequence(const ScanInputs& in, const ScanSizes& sizes, int64_t columns, bool wanted = true,
                    std::optional<ScalarType> dtype = std::nullopt) {
  if (!wanted) return empty_like_dtype(in.input, {0}, true, dtype);
  if (has_holes(in, sizes)) return torch::stable::new_zeros(in.input, sequence_shape(in, sizes, columns), dtype);
  Tensor found = with_huge_pages(torch::stable::new_empty(in.input, sequence_shape(in, sizes, columns), dtype));
  if (in.lengths && !in.offsets && found.numel() > 0) clear_padding(found, in.lengths->const_data_ptr<int64_t>());
  return found;
}

// One that only backward reads: those steps are left as they are.
Tensor new_saved_sequence(const ScanInputs& in, const ScanSizes& sizes, int64_t columns, bool wanted,
                          std::optional<ScalarType> dtype = std::nullopt) {
  return with_huge_pages(empty_like_dtype(in.input, sequence_shape(in, sizes, columns), wanted, dtype));
}

ScalarType cell_state_dtype(const Tensor& input) {
  const ScalarType dtype = input.scalar_type();
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

// What the forward pass wrote, for the backward pass to read: asking for writable data would copy a copy-on-write
// tensor.
template <class S>
Sequence<S> written_sequence(const Tensor& tensor, RowStarts starts) {
  const Sequence<const S> read = sequence<const S>(tensor, starts);
  return {const_cast<S*>(read.data), read.step_start,    read.sample_start,
          read.step_stride,          read.sample_stride, read.col_stride};
}

template <class S>
ScanParams<S> of_samples(ScanParams<S> p, Samples samples, const Schedule& schedule) {
  const auto take = [&](auto&... each) { ((each = each.every(samples.step, samples.first)), ...); };
  if (samples.step > 1) take(p.x, p.h_0, p.c_0, p.reset_h, p.reset_c, p.y, p.gates, p.cells, p.h_n, p.c_n);
  p.schedule = schedule;
  return p;
}

template <class S>
ScanGradients<S> of_samples(ScanGradients<S> d, Samples samples) {
  const auto take = [&](auto&... each) { ((each = each.every(samples.step, samples.first)), ...); };
  if (samples.step > 1) take(d.y, d.cells, d.h_n, d.c_n, d.x, d.h_0, d.c_0, d.reset_h, d.reset_c);
  return d;
}

using ScanResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

ScanResults scan(std::string cell, Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh,
                 OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr, OptionalTensor reset_h,
                 OptionalTensor reset_c, OptionalTensor lengths, OptionalTensor batch_sizes, OptionalTensor offsets,
                 OptionalTensor reset, bool reverse, bool save, bool recompute, bool all_states, int64_t groups) {
  const ScanInputs in{cell,    input,   h_0,     c_0,         weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                      reset_h, reset_c, lengths, batch_sizes, offsets,   reset,     reverse, groups};
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const bool has_c = sizes.cell.has_cell_state;
  Tensor y = new_sequence(in, sizes, sizes.R);
  Tensor h_n = empty_like_dtype(input, {sizes.N, sizes.R});
  Tensor c_n = empty_like_dtype(input, {sizes.N, sizes.H}, has_c);
  Tensor gates = new_saved_sequence(in, sizes, sizes.cell.saved * sizes.H, save && !recompute && sizes.cell.saved > 0);
  Tensor cells = all_states ? new_sequence(in, sizes, sizes.H, has_c, cell_state_dtype(input))
                            : new_saved_sequence(in, sizes, sizes.H, save && has_c, cell_state_dtype(input));

  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  dispatch_dtype(input, [&]<class S>() {
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      ScanParams<S> p = scan_params<S>(in, sizes, starts, group);
      p.y = sequence<S>(y, starts);
      p.gates = sequence<S>(gates, starts);
      p.cells = sequence<Accumulate<S>>(cells, starts);
      p.h_n = matrix<S>(h_n);
      p.c_n = matrix<S>(c_n);
      instruction_set().kernels<S>().forward(cell, of_samples(p, samples, schedule), team);
    });
  });
  return {y, h_n, c_n, gates, cells};
}

using ScanGradientResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Bit i of `needs` asks for the gradient of the i-th tensor of the result.
ScanGradientResults scan_backward(std::string cell, OptionalTensor grad_y, OptionalTensor grad_h_n,
                                  OptionalTensor grad_c_n, OptionalTensor grad_cells, Tensor input, Tensor h_0,
                                  OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
                                  OptionalTensor bias_hh, OptionalTensor weight_hr, OptionalTensor reset_h,
                                  OptionalTensor reset_c, OptionalTensor lengths, OptionalTensor batch_sizes,
                                  OptionalTensor offsets, OptionalTensor reset, bool reverse, Tensor y, Tensor gates,
                                  Tensor cells, int64_t needs, int64_t groups) {
  const ScanInputs in{cell,    input,   h_0,     c_0,         weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                      reset_h, reset_c, lengths, batch_sizes, offsets,   reset,     reverse, groups};
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const auto [T, N, I, H, R, facts] = sizes;
  const ScalarType dtype = input.scalar_type();
  const ScalarType cells_dtype = cell_state_dtype(input);
  const auto check_sequence = [&](const OptionalTensor& tensor, const char* name, ScalarType kind, int64_t columns) {
    if (!tensor) return;
    check_like(*tensor, name, kind, input);
    if (in.rows_input())
      check_shape<2>(*tensor, name, {input.size(0), columns});
    else
      check_shape<3>(*tensor, name, {T, N, columns});
  };
  const auto check_matrix = [&](const OptionalTensor& tensor, const char* name, int64_t columns) {
    if (!tensor) return;
    check_like(*tensor, name, dtype, input);
    check_shape<2>(*tensor, name, {N, columns});
  };
  const auto check_saved = [&](const Tensor& tensor, const char* name, ScalarType kind, int64_t columns) {
    if (columns > 0)
      check_sequence(tensor, name, kind, columns);
    else
      check_shape<1>(tensor, name, {0});
  };
  check_sequence(grad_y, "grad_y", dtype, R);
  check_sequence(grad_cells, "grad_cells", cells_dtype, H);
  check_sequence(y, "y", dtype, R);
  check_matrix(grad_h_n, "grad_h_n", R);
  check_matrix(grad_c_n, "grad_c_n", H);
  check_saved(gates, "gates", dtype, gates.dim() > 1 ? facts.saved * H : 0);  // none: they are recomputed
  check_saved(cells, "cells", cells_dtype, facts.has_cell_state ? H : 0);
  STD_TORCH_CHECK(y.is_contiguous() && gates.is_contiguous() && cells.is_contiguous(),
                  "fastrnn: y, gates and cells must be as scan returned them");
  STD_TORCH_CHECK(!(grad_c_n || grad_cells) || facts.has_cell_state,
                  "fastrnn: grad_c_n and grad_cells are for cells with a cell state");

  const auto wanted = [&](int bit, const OptionalTensor& of) { return of.has_value() && (needs >> bit & 1); };
  const auto new_weight = [&](std::vector<int64_t> shape, bool is_wanted) {
    if (groups > 0) shape.insert(shape.begin(), groups);
    return empty_like_dtype(input, shape, is_wanted);
  };
  Tensor d_input = new_sequence(in, sizes, I, wanted(0, input));
  Tensor d_h_0 = empty_like_dtype(input, {N, R}, wanted(1, h_0));
  Tensor d_c_0 = empty_like_dtype(input, {N, H}, wanted(2, c_0));
  Tensor d_weight_ih = new_weight({facts.gates * H, I}, wanted(3, weight_ih));
  Tensor d_weight_hh = new_weight({facts.gates * H, R}, wanted(4, weight_hh));
  Tensor d_bias_ih = new_weight({facts.gates * H}, wanted(5, bias_ih));
  Tensor d_bias_hh = new_weight({facts.gates * H}, wanted(6, bias_hh));
  Tensor d_weight_hr = new_weight({R, H}, wanted(7, weight_hr));
  Tensor d_reset_h = empty_like_dtype(input, {N, R}, wanted(8, reset_h));
  Tensor d_reset_c = empty_like_dtype(input, {N, H}, wanted(9, reset_c));

  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  dispatch_dtype(input, [&]<class S>() {
    for_groups(in, sizes, [&](Samples samples, int64_t group, const Schedule& schedule, const Team& team) {
      ScanParams<S> p = scan_params<S>(in, sizes, starts, group);
      p.y = written_sequence<S>(y, starts);
      p.gates = written_sequence<S>(gates, starts);
      p.cells = written_sequence<Accumulate<S>>(cells, starts);
      ScanGradients<S> d;
      d.y = sequence<const S>(grad_y, starts);
      d.cells = sequence<const Accumulate<S>>(grad_cells, starts);
      d.h_n = matrix<const S>(grad_h_n);
      d.c_n = matrix<const S>(grad_c_n);
      d.x = sequence<S>(d_input, starts);
      d.h_0 = matrix<S>(d_h_0);
      d.c_0 = matrix<S>(d_c_0);
      d.reset_h = matrix<S>(d_reset_h);
      d.reset_c = matrix<S>(d_reset_c);
      // Groups that share their weights are one scan, whose gradients lie one after the other.
      const bool separate = samples.step > 1;
      d.groups = separate ? 1 : std::max<int64_t>(1, groups);
      d.weights.ih = matrix<S>(d_weight_ih, group);
      d.weights.hh = matrix<S>(d_weight_hh, group);
      d.weights.bias_ih = vector<S>(d_bias_ih, group);
      d.weights.bias_hh = vector<S>(d_bias_hh, group);
      d.weights.hr = matrix<S>(d_weight_hr, group);
      instruction_set().kernels<S>().backward(cell, of_samples(p, samples, schedule), of_samples(d, samples), team);
    });
  });
  return {d_input, d_h_0, d_c_0, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr, d_reset_h, d_reset_c};
}

// What scan would do with these arguments, a "key: value" a line. Of groups with weights of their own: with each.
std::string scan_choice(std::string cell, Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih,
                        Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
                        OptionalTensor reset_h, OptionalTensor reset_c, OptionalTensor lengths,
                        OptionalTensor batch_sizes, OptionalTensor offsets, OptionalTensor reset, bool reverse, bool,
                        bool, bool, int64_t groups) {
  const ScanInputs in{cell,    input,   h_0,     c_0,         weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                      reset_h, reset_c, lengths, batch_sizes, offsets,   reset,     reverse, groups};
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const std::vector<int64_t> of_steps = step_starts(in);
  const bool separate = has_own_weights(in);
  const HostSchedule host(in, sizes, separate ? Samples{in.groups, 0} : Samples{});
  const bool side_by_side = separate && in.groups >= most_threads();
  const Team team = side_by_side ? team_of(1) : team_for(sizes, host.rows);
  std::string found;
  const auto say = [&](const char* key, const auto& value) {
    found.append(key).append(": ");
    if constexpr (std::is_convertible_v<decltype(value), std::string_view>)
      found.append(value);
    else
      found.append(std::to_string(value));
    found.append("\n");
  };
  dispatch_dtype(input, [&]<class S>() {
    const ScanParams<S> p = of_samples(scan_params<S>(in, sizes, row_starts(in, of_steps), 0), {}, host.schedule);
    const InstructionSet& set = instruction_set();
    Choice choice = set.kernels<S>().choice(cell, p, team);
    const bool lanes = choice.not_in_lanes.empty();
    if (lanes) choice = {.not_in_lanes = {}, .packs = false, .grid = {team.threads(), 1}};
    say("instruction_set", set.provides<S>() ? set.name : set.rest->name);
    say("unavailable", instruction_sets(false));
    say("kernel", lanes ? "samples in lanes" : "units in lanes");
    say("not_in_lanes", choice.not_in_lanes);
    say("threads", side_by_side ? most_threads() : team.threads());
    say("threads_allowed", most_threads());
    say("forked", int{forked()});
    say("row_groups", choice.grid.row_groups);
    say("unit_groups", choice.grid.unit_groups);
    say("packs", int{choice.packs});
    say("forward_chunk", choice.forward_chunk);
    say("backward_chunk", choice.backward_chunk);
  });
  say("T", sizes.T);
  say("N", sizes.N);
  say("I", sizes.I);
  say("H", sizes.H);
  say("R", sizes.R);
  say("rows", separate ? host.rows * in.groups : host.rows);
  return found;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_backward", TORCH_BOX(&scan_backward));
  m.impl("scan_choice", TORCH_BOX(&scan_choice));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&available_instruction_sets));
}

}  // namespace
}  // namespace fastrnn::cpu
