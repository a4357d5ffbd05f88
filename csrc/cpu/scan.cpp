// The op on CPU: from tensors to the kernels of one instruction set, and the threads they run on.
#include <torch/csrc/stable/library.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"

namespace fastrnn::cpu {
namespace {

// Best first.
constexpr std::array kInstructionSets = {
#if defined(__x86_64__)
    &kAmx,   &kAvx512Bf16, &kAvx512, &kAvx2,
#elif defined(__aarch64__)
    &kNeon,
#endif
    &kPlain,
};

// "avx512,avx2,plain": what this machine can run, best first.
std::string instruction_sets() {
  std::string names;
  for (const InstructionSet* set : kInstructionSets)
    if (set->runs_here()) names.append(names.empty() ? "" : ",").append(set->name);
  return names;
}

// The best set this machine runs, or the one FASTRNN_CPU_ISA names.
const InstructionSet& instruction_set() {
  const char* wanted = std::getenv("FASTRNN_CPU_ISA");
  for (const InstructionSet* set : kInstructionSets)
    if ((!wanted || set->name == wanted) && set->runs_here()) return *set;
  STD_TORCH_CHECK(false, "fastrnn: FASTRNN_CPU_ISA is '", wanted ? wanted : "", "', expected one of ",
                  instruction_sets());
}

// Below this a fork and join costs more than it saves.
constexpr double kMinFlopPerThread = 1e5;

// A forked child runs on one thread: the parent's OpenMP pool does not survive a fork.
const pid_t kLoadedIn = getpid();

Team team_for(const ScanSizes& sizes, int64_t rows) {
  const double flop = 2.0 * rows * sizes.cell.gates * sizes.H * (sizes.I + sizes.R);
  const int64_t useful = std::max<int64_t>(1, static_cast<int64_t>(flop / kMinFlopPerThread));
  const int64_t threads = getpid() == kLoadedIn ? torch::stable::get_num_threads() : 1;
  return {std::min(threads, useful), [](int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
            torch::stable::parallel_for(0, parts, 1, body);
          }};
}

// Rows by length, longest first, and the arrays a Schedule points to.
struct HostSchedule {
  std::vector<int64_t> order, active, step_start;
  Schedule schedule;
  int64_t rows;  // steps run by all samples

  HostSchedule(const ScanInputs& in, const ScanSizes& sizes) : rows(sizes.T * sizes.N) {
    schedule = {.T = sizes.T, .N = sizes.N, .reverse = in.reverse, .reset = matrix<const uint8_t>(in.reset)};
    if (in.lengths && sizes.N > 0) {
      sort_by_length(in.lengths->const_data_ptr<int64_t>());
    } else if (sizes.packed) {
      schedule.active = in.batch_sizes->const_data_ptr<int64_t>();
      step_start.resize(sizes.T);
      std::exclusive_scan(schedule.active, schedule.active + sizes.T, step_start.begin(), int64_t{0});
      rows = in.input.size(0);
    }
  }
  HostSchedule(const HostSchedule&) = delete;

  const int64_t* starts() const { return step_start.empty() ? nullptr : step_start.data(); }

 private:
  void sort_by_length(const int64_t* lengths) {
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

// A sequence result [T, N, columns] or [rows, columns]. Steps that no sample runs stay 0.
Tensor new_sequence(const ScanInputs& in, const ScanSizes& sizes, int64_t columns, bool wanted = true) {
  if (!wanted) return empty_like_dtype(in.input, {0});
  const std::vector<int64_t> shape =
      sizes.packed ? std::vector<int64_t>{in.input.size(0), columns} : std::vector<int64_t>{sizes.T, sizes.N, columns};
  if (in.lengths) return torch::stable::new_zeros(in.input, shape);
  return with_huge_pages(torch::stable::new_empty(in.input, shape));
}

ScalarType cell_state_dtype(const Tensor& input) {
  return input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::vector<int64_t> saved_shape(const ScanInputs& in, const ScanSizes& sizes, int64_t columns) {
  const int64_t rows = sizes.packed ? in.input.size(0) : sizes.T * sizes.N;
  return {rows, columns};
}

// A saved tensor [rows, columns] seen as a sequence.
template <class S>
Sequence<S> saved_sequence(const Tensor& tensor, const ScanSizes& sizes, const int64_t* step_start) {
  if (tensor.numel() == 0) return {};
  const int64_t columns = tensor.size(1);
  return {data_of<S>(tensor), step_start, step_start ? columns : sizes.N * columns, columns, 1};
}

// What the forward pass wrote, for the backward pass to read: asking for writable data would copy a copy-on-write
// tensor.
template <class S>
Sequence<S> as_result(const Sequence<const S>& read) {
  return {const_cast<S*>(read.data), read.step_start, read.step_stride, read.sample_stride, read.col_stride};
}

using ScanResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

ScanResults scan(std::string cell, Tensor input, Tensor h_0, OptionalTensor c_0, Tensor weight_ih, Tensor weight_hh,
                 OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr, OptionalTensor lengths,
                 OptionalTensor batch_sizes, OptionalTensor reset, bool reverse, bool save, bool recompute) {
  const ScanInputs in{cell,    input,     h_0,     c_0,         weight_ih, weight_hh, bias_ih,
                      bias_hh, weight_hr, lengths, batch_sizes, reset,     reverse};
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const bool has_c = sizes.cell.has_cell_state;
  Tensor y = new_sequence(in, sizes, sizes.R);
  Tensor h_n = empty_like_dtype(input, {sizes.N, sizes.R});
  Tensor c_n = empty_like_dtype(input, {sizes.N, sizes.H}, has_c);
  Tensor gates = with_huge_pages(empty_like_dtype(input, saved_shape(in, sizes, sizes.cell.saved * sizes.H),
                                                  save && !recompute && sizes.cell.saved > 0));
  Tensor cells =
      with_huge_pages(empty_like_dtype(input, saved_shape(in, sizes, sizes.H), save && has_c, cell_state_dtype(input)));

  dispatch_dtype(input, [&]<class S>() {
    const HostSchedule host(in, sizes);
    ScanParams<S> p = scan_params<S>(in, sizes, host.schedule, host.starts());
    p.y = sequence<S>(y, host.starts());
    p.gates = saved_sequence<S>(gates, sizes, host.starts());
    p.cells = saved_sequence<Accumulate<S>>(cells, sizes, host.starts());
    p.h_n = matrix<S>(h_n);
    p.c_n = matrix<S>(c_n);
    instruction_set().kernels<S>().forward(cell, p, team_for(sizes, host.rows));
  });
  return {y, h_n, c_n, gates, cells};
}

using ScanGradientResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Bit i of `needs` asks for the gradient of the i-th tensor of the result.
ScanGradientResults scan_backward(std::string cell, OptionalTensor grad_y, OptionalTensor grad_h_n,
                                  OptionalTensor grad_c_n, Tensor input, Tensor h_0, OptionalTensor c_0,
                                  Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh,
                                  OptionalTensor weight_hr, OptionalTensor lengths, OptionalTensor batch_sizes,
                                  OptionalTensor reset, bool reverse, Tensor y, Tensor gates, Tensor cells,
                                  int64_t needs) {
  const ScanInputs in{cell,    input,     h_0,     c_0,         weight_ih, weight_hh, bias_ih,
                      bias_hh, weight_hr, lengths, batch_sizes, reset,     reverse};
  const ScanSizes sizes = check_sizes(in);
  check_inputs(in, sizes);
  const auto [T, N, I, H, R, facts, packed] = sizes;
  const auto check_sequence = [&](const OptionalTensor& tensor, const char* name) {
    if (!tensor) return;
    check_like(*tensor, name, input.scalar_type(), input);
    if (packed)
      check_shape<2>(*tensor, name, {input.size(0), R});
    else
      check_shape<3>(*tensor, name, {T, N, R});
  };
  const auto check_matrix = [&](const OptionalTensor& tensor, const char* name, ScalarType dtype, int64_t rows,
                                int64_t columns) {
    if (!tensor) return;
    check_like(*tensor, name, dtype, input);
    check_shape<2>(*tensor, name, {rows, columns});
  };
  const ScalarType dtype = input.scalar_type();
  const int64_t rows = saved_shape(in, sizes, 0)[0];
  check_sequence(grad_y, "grad_y");
  check_sequence(y, "y");
  check_matrix(grad_h_n, "grad_h_n", dtype, N, R);
  check_matrix(grad_c_n, "grad_c_n", dtype, N, H);
  const auto check_saved = [&](const Tensor& tensor, const char* name, ScalarType kind, int64_t columns) {
    if (columns > 0)
      check_matrix(tensor, name, kind, rows, columns);
    else
      check_shape<1>(tensor, name, {0});
  };
  check_saved(gates, "gates", dtype, gates.dim() == 2 ? facts.saved * H : 0);  // none: they are recomputed
  check_saved(cells, "cells", cell_state_dtype(input), facts.has_cell_state ? H : 0);
  STD_TORCH_CHECK(y.is_contiguous() && gates.is_contiguous() && cells.is_contiguous(),
                  "fastrnn: y, gates and cells must be as scan returned them");
  STD_TORCH_CHECK(!grad_c_n || facts.has_cell_state, "fastrnn: grad_c_n is for cells with a cell state");

  const auto wanted = [&](int bit, const OptionalTensor& of) { return of.has_value() && (needs >> bit & 1); };
  Tensor d_input = new_sequence(in, sizes, I, wanted(0, input));
  Tensor d_h_0 = empty_like_dtype(input, {N, R}, wanted(1, h_0));
  Tensor d_c_0 = empty_like_dtype(input, {N, H}, wanted(2, c_0));
  Tensor d_weight_ih = empty_like_dtype(input, {facts.gates * H, I}, wanted(3, weight_ih));
  Tensor d_weight_hh = empty_like_dtype(input, {facts.gates * H, R}, wanted(4, weight_hh));
  Tensor d_bias_ih = empty_like_dtype(input, {facts.gates * H}, wanted(5, bias_ih));
  Tensor d_bias_hh = empty_like_dtype(input, {facts.gates * H}, wanted(6, bias_hh));
  Tensor d_weight_hr = empty_like_dtype(input, {R, H}, wanted(7, weight_hr));

  dispatch_dtype(input, [&]<class S>() {
    const HostSchedule host(in, sizes);
    ScanParams<S> p = scan_params<S>(in, sizes, host.schedule, host.starts());
    p.y = as_result(sequence<const S>(y, host.starts()));
    p.gates = as_result(saved_sequence<const S>(gates, sizes, host.starts()));
    p.cells = as_result(saved_sequence<const Accumulate<S>>(cells, sizes, host.starts()));
    ScanGradients<S> d;
    d.y = sequence<const S>(grad_y, host.starts());
    d.h_n = matrix<const S>(grad_h_n);
    d.c_n = matrix<const S>(grad_c_n);
    d.x = sequence<S>(d_input, host.starts());
    d.h_0 = matrix<S>(d_h_0);
    d.c_0 = matrix<S>(d_c_0);
    d.weights.ih = matrix<S>(d_weight_ih);
    d.weights.hh = matrix<S>(d_weight_hh);
    d.weights.bias_ih = vector<S>(d_bias_ih);
    d.weights.bias_hh = vector<S>(d_bias_hh);
    d.weights.hr = matrix<S>(d_weight_hr);
    instruction_set().kernels<S>().backward(cell, p, d, team_for(sizes, host.rows));
  });
  return {d_input, d_h_0, d_c_0, d_weight_ih, d_weight_hh, d_bias_ih, d_bias_hh, d_weight_hr};
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_backward", TORCH_BOX(&scan_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_sets", TORCH_BOX(&instruction_sets));
}

}  // namespace
}  // namespace fastrnn::cpu
