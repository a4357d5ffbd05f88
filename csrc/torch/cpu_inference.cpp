// The ops on CPU for calls without gradients: `stack`, all layers and directions of a module, and `step`, a cell.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "torch/cpu_scan.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {
namespace {

using Tensors = std::vector<Tensor>;

// The samples of a batch in any layout.
int64_t count_samples(const ScanInputs& in) {
  if (in.offsets) return in.offsets->numel() - 1;
  if (!in.batch_sizes) return in.input->size(1);
  const int64_t T = in.batch_sizes->numel();
  return T > 0 ? check_host_vector(*in.batch_sizes, "batch_sizes", T)[0] : 0;
}

bool shared(const Tensor& state) { return state.size(1) == 1; }

void check_states(const Tensors& states, const char* name, int64_t entries, const ScanSizes& sizes,
                  const Tensor& input) {
  const std::array columns{sizes.R, sizes.H};
  const size_t count = sizes.cell.has_cell_state ? 2 : 1;
  STD_TORCH_CHECK(states.empty() || states.size() == count, "fastrnn: ", name, " has ", states.size(),
                  " tensors, expected ", count, " or none");
  for (size_t i = 0; i < states.size(); ++i) {
    check_like(states[i], name, input.scalar_type(), input);
    STD_TORCH_CHECK(states[i].dim() == 3, "fastrnn: ", name, " has ", states[i].dim(), " dimensions, expected 3");
    check_shape(states[i], name, {entries, shared(states[i]) ? 1 : sizes.N, columns[i]});
  }
}

// Views the state of one layer and direction [N, columns]; null, which is zero, where there are no states.
template <class S>
Matrix<S> state_of(const Tensors& states, size_t kind, int64_t index) {
  if (kind >= states.size() || states[kind].numel() == 0) return {};
  const Tensor& state = states[kind];
  return {data_of<S>(state) + index * state.stride(0), shared(state) ? 0 : state.stride(1), state.stride(2)};
}

// Takes the weights of one layer and direction from those of all.
void take_weights(const Tensors& weights, int64_t index, int64_t each, ScanInputs& in) {
  const Tensor* own = weights.data() + index * each;
  in.weight_ih = own[0];
  in.weight_hh = own[1];
  if (each >= 4) {
    in.bias_ih = own[2];
    in.bias_hh = own[3];
  }
  if (each % 2 == 1) in.weight_hr = own[each - 1];
}

Tensors stack(std::string cell, Tensor input, Tensors states, Tensors reset_states, Tensors weights, int64_t layers,
              int64_t directions, OptionalTensor lengths, OptionalTensor batch_sizes, OptionalTensor offsets,
              OptionalTensor reset, bool reverse) {
  STD_TORCH_CHECK(layers > 0 && (directions == 1 || directions == 2) && !(reverse && directions == 2),
                  "fastrnn: expected one layer or more, one direction or two, and reverse of one");
  const int64_t entries = layers * directions, count = weights.size(), each = count / entries;
  STD_TORCH_CHECK(count == each * entries && 2 <= each && each <= 5, "fastrnn: got ", count, " weights for ", entries,
                  " layers and directions");
  const CellFacts facts = cell_facts(cell);
  ScanInputs in{{}, std::move(cell), facts, lengths, batch_sizes, offsets, reset, reverse, 0, false};
  in.input = input;
  take_weights(weights, 0, each, in);
  check_input_rank(in);
  ScanSizes sizes = check_sizes(in, count_samples(in));
  check_states(states, "hidden", entries, sizes, input);
  check_states(reset_states, "reset_state", entries, sizes, input);

  Tensors finals{empty(input, {entries, sizes.N, sizes.R})};
  if (facts.has_cell_state) finals.push_back(empty(input, {entries, sizes.N, sizes.H}));
  const int64_t columns = directions * sizes.R;
  const Shape shape = in.rows_input() ? Shape{input.size(0), columns} : Shape{sizes.T, sizes.N, columns};
  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  OptionalTensor output;
  std::optional<HostSchedule> host;
  for (int64_t index = 0; index < entries; ++index) {
    const int64_t direction = index % directions;
    take_weights(weights, index, each, in);
    if (direction == 0) {
      if (output) in.input = *output;
      sizes.I = in.input->size(-1);
      output = new_sequence(in, shape, input.scalar_type(), index + directions == entries);
    }
    check_inputs(in, sizes);
    if (!host) host.emplace(in, sizes, Samples{});  // which reads what was checked
    host->schedule.reverse = reverse || direction == 1;
    dispatch_real_dtype(input, [&]<class S>() {
      auto p = scan_params<ScanParams<S>>(in, sizes, starts, 0);
      p.schedule = host->schedule;
      p.h_0 = state_of<const S>(states, 0, index);
      p.c_0 = state_of<const S>(states, 1, index);
      p.reset_h = state_of<const S>(reset_states, 0, index);
      p.reset_c = state_of<const S>(reset_states, 1, index);
      p.y = sequence<S>(output, starts);
      if (p.y) p.y.data += direction * sizes.R;
      p.h_n = state_of<S>(finals, 0, index);
      p.c_n = state_of<S>(finals, 1, index);
      kernels<S>().forward(in.cell, p, team_for(sizes, host->rows));
    });
  }
  finals.insert(finals.begin(), *output);
  return finals;
}

// A row of a batch, or the only one of a tensor without a batch.
template <class S>
Matrix<S> rows_of(const Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {data_of<S>(tensor), tensor.dim() == 2 ? tensor.stride(0) : 0, tensor.stride(-1)};
}

Tensors step(std::string cell, Tensor input, Tensors states, Tensors weights) {
  const int64_t rank = input.dim(), count = weights.size();
  STD_TORCH_CHECK(rank == 1 || rank == 2, "fastrnn: input has ", rank, " dimensions, expected 1 or 2");
  STD_TORCH_CHECK(count == 2 || count == 4, "fastrnn: got ", count, " weights, expected 2 or 4");
  const CellFacts facts = cell_facts(cell);
  ScanInputs in{{}, std::move(cell), facts, {}, {}, {}, {}, false, 0, false};
  in.input = input;
  take_weights(weights, 0, count, in);
  const int64_t N = rank == 2 ? input.size(0) : 1;
  const ScanSizes sizes{1, N, input.size(-1), in.weight_ih->size(0) / facts.gates, in.weight_hh->size(-1), facts};
  check_bounds(sizes);
  check_weights(in, sizes);
  const auto shape = [&](int64_t columns) { return rank == 2 ? Shape{N, columns} : Shape{columns}; };
  const std::array columns{sizes.R, sizes.H};
  const size_t kinds = facts.has_cell_state ? 2 : 1;
  STD_TORCH_CHECK(states.empty() || states.size() == kinds, "fastrnn: got ", states.size(), " states, expected ", kinds,
                  " or none");
  Tensors next;
  for (size_t kind = 0; kind < kinds; ++kind) {
    if (!states.empty()) {
      check_like(states[kind], "hidden", input.scalar_type(), input);
      check_shape(states[kind], "hidden", shape(columns[kind]));
    }
    next.push_back(empty(input, shape(columns[kind])));
  }
  dispatch_real_dtype(input, [&]<class S>() {
    auto p = scan_params<ScanParams<S>>(in, sizes, {}, 0);
    p.schedule.T = 1;
    p.schedule.N = N;
    const auto x = rows_of<const S>(input);
    p.x = {x.data, nullptr, nullptr, 0, x.row_stride, x.col_stride};
    if (!states.empty()) p.h_0 = rows_of<const S>(states[0]);
    if (states.size() == 2) p.c_0 = rows_of<const S>(states[1]);
    p.h_n = rows_of<S>(next[0]);
    if (kinds == 2) p.c_n = rows_of<S>(next[1]);
    p.y = {p.h_n.data, nullptr, nullptr, 0, p.h_n.row_stride, p.h_n.col_stride};  // the only step's h is the last one
    kernels<S>().forward(in.cell, p, team_for(sizes, N));
  });
  return next;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("stack", TORCH_BOX(&stack));
  m.impl("step", TORCH_BOX(&step));
}

}  // namespace
}  // namespace fastrnn::cpu
