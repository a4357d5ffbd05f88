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
#include "torch/packed_stack.h"

namespace fastrnn::cpu {
namespace {

using Tensors = std::vector<Tensor>;

// The samples of a batch in any layout.
int64_t count_samples(const ScanInputs& in) {
  if (in.offsets) {
    STD_TORCH_CHECK(in.offsets->numel() > 0, "fastrnn: offsets is empty, expected one more than there are samples");
    return in.offsets->numel() - 1;
  }
  if (!in.batch_sizes) return in.input->size(1);
  const int64_t T = in.batch_sizes->numel();
  return T > 0 ? check_host_vector(*in.batch_sizes, "batch_sizes", T)[0] : 0;
}

bool shared(const Tensor& state) { return state.size(1) == 1; }

// Returns how many kinds of states the cell has.
size_t check_state_count(const Tensors& states, const char* name, const CellFacts& cell) {
  const size_t kinds = cell.cell_states > 0 ? 2 : 1;
  STD_TORCH_CHECK(states.empty() || states.size() == kinds, "fastrnn: ", name, " has ", states.size(),
                  " tensors, expected ", kinds, " or none");
  return kinds;
}

void check_states(const Tensors& states, const char* name, int64_t entries, const ScanSizes& sizes,
                  const Tensor& input) {
  const std::array columns{sizes.R, sizes.cell.cell_states * sizes.H};
  check_state_count(states, name, sizes.cell);
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

// Tells whether the last of a layer's weights are its cell's vectors.
bool has_vectors(const CellFacts& cell) { return cell.vectors > 0; }

// Takes the weights of one layer and direction from those of all.
void take_weights(const Tensors& weights, int64_t index, int64_t each, ScanInputs& in) {
  const Tensor* own = weights.data() + index * each;
  const int64_t count = each - has_vectors(in.facts);
  in.weight_ih = own[0];
  in.weight_hh = own[1];
  if (count >= 4) {
    in.bias_ih = own[2];
    in.bias_hh = own[3];
  }
  if (count % 2 == 1) in.weight_hr = own[count - 1];
  if (count < each) in.vectors = own[count];
}

// Returns how many weights each layer and direction has.
int64_t check_counts(const Tensors& weights, int64_t layers, int64_t directions, const CellFacts& cell) {
  STD_TORCH_CHECK(layers > 0 && (directions == 1 || directions == 2),
                  "fastrnn: expected one layer or more, and one direction or two");
  const int64_t entries = layers * directions, all = weights.size(), each = all / entries;
  const int64_t count = each - has_vectors(cell);
  STD_TORCH_CHECK(all == each * entries && 2 <= count && count <= 5, "fastrnn: got ", all, " weights for ", entries,
                  " layers and directions");
  return each;
}

// What a call takes its weights from: the tensors themselves, or what prepack made of them.
class StackWeights {
 public:
  StackWeights(const Tensors& weights, const OptionalTensor& packed, int64_t layers, int64_t directions,
               const ScanInputs& in)
      : weights_(&weights),
        header_(packed ? &packed_header(*packed) : nullptr),
        each_(packed ? 0 : check_counts(weights, layers, directions, in.facts)) {
    if (!header_) return;
    check_packed(*header_, in.cell, in.input->scalar_type(), in.input->size(-1));
    STD_TORCH_CHECK(header_->layers == layers && header_->directions == directions,
                    "fastrnn: the weights were packed for other layers or directions");
  }
  StackWeights(const PackedHeader& header, const ScanInputs& in) : header_(&header), each_(0) {
    check_packed(header, in.cell, in.input->scalar_type(), in.input->size(-1));
  }

  // The sizes of the first layer; `in` has its weights afterwards.
  ScanSizes sizes(ScanInputs& in, int64_t N) const {
    if (!header_) {
      take(0, in);
      return check_sizes(in, N);
    }
    const int64_t T = check_steps(in, N);
    return {T, N, header_->I, header_->H, header_->R, in.facts};
  }
  // Gives a layer and direction its weights.
  void enter(int64_t entry, ScanInputs& in, const ScanSizes& sizes) const {
    if (header_) return;
    take(entry, in);
    check_weights(in, sizes);
  }
  template <class S>
  void set(int64_t entry, std::string_view cell, ScanParams<S>& p) const {
    if (header_) set_packed(*header_, entry, cell, p);
  }

 private:
  void take(int64_t entry, ScanInputs& in) const { take_weights(*weights_, entry, each_, in); }

  const Tensors* weights_ = nullptr;  // where not packed
  const PackedHeader* header_;        // where packed
  int64_t each_;
};

ScanInputs inference_inputs(std::string cell, const Tensor& input, std::vector<double> numbers = {}) {
  const CellFacts facts = cell_facts(cell);
  STD_TORCH_CHECK(facts.extra_inputs == 0, "fastrnn: cell '", cell, "' takes inputs beside x; op scan runs it");
  ScanInputs in{{}, std::move(cell), facts, {}, {}, {}, {}, false, 0, {}, std::move(numbers)};
  check_numbers(in);
  in.input = input;
  return in;
}

// Returns the last layer's output and the final states.
Tensors run_stack(ScanInputs in, const Tensors& states, const Tensors& reset_states, const StackWeights& all,
                  int64_t layers, int64_t directions) {
  STD_TORCH_CHECK(!(in.reverse && directions == 2), "fastrnn: expected reverse of one direction");
  const int64_t entries = layers * directions;
  const Tensor input = *in.input;
  const CellFacts& facts = in.facts;
  check_input_rank(in);
  ScanSizes sizes = all.sizes(in, count_samples(in));
  check_states(states, "hidden", entries, sizes, input);
  check_states(reset_states, "reset_state", entries, sizes, input);

  Tensors finals{empty(input, {entries, sizes.N, sizes.R})};
  if (facts.cell_states > 0) finals.push_back(empty(input, {entries, sizes.N, facts.cell_states * sizes.H}));
  const int64_t columns = directions * sizes.R;
  const Shape shape = in.rows_input() ? Shape{input.size(0), columns} : Shape{sizes.T, sizes.N, columns};
  const std::vector<int64_t> of_steps = step_starts(in);
  const RowStarts starts = row_starts(in, of_steps);
  OptionalTensor output;
  std::optional<HostSchedule> host;
  const InstructionSet& set = instruction_set();
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (output) {
      in.input = *output;
      sizes.I = in.input->size(-1);
    }
    dispatch_real_dtype(input.scalar_type(), [&]<class S>() {
      std::array<ScanParams<S>, 2> params;  // of each direction
      for (int64_t direction = 0; direction < directions; ++direction) {
        const int64_t entry = layer * directions + direction;
        all.enter(entry, in, sizes);
        check_data(in, sizes);
        if (direction == 0) output = new_sequence(in, shape, input.scalar_type(), layer + 1 == layers);
        if (!host) host.emplace(in, sizes, Samples{});  // which reads what was checked
        host->schedule.reverse = in.reverse || direction == 1;
        ScanParams<S>& p = params[direction];
        p = scan_params<ScanParams<S>>(in, sizes, starts, 0);
        p.schedule = host->schedule;
        p.h_0 = state_of<const S>(states, 0, entry);
        p.c_0 = state_of<const S>(states, 1, entry);
        p.reset_h = state_of<const S>(reset_states, 0, entry);
        p.reset_c = state_of<const S>(reset_states, 1, entry);
        p.y = sequence<S>(output, starts);
        if (p.y) p.y.data += direction * sizes.R;
        p.h_n = state_of<S>(finals, 0, entry);
        p.c_n = state_of<S>(finals, 1, entry);
        all.set(entry, in.cell, p);
      }
      const Kernels<S>& kernels = kernels_for<S>(in.cell, set);
      if (directions == 2 &&
          suit_a_thread_each(kernels, in.cell, params[0], sizes, host->rows, forward_beside(sizes))) {
        torch::stable::parallel_for(0, directions, 1, [&](int64_t begin, int64_t end) {
          for (int64_t direction = begin; direction < end; ++direction)
            kernels.forward(in.cell, params[direction], team_of(1));
        });
      } else {
        for (int64_t direction = 0; direction < directions; ++direction)
          kernels.forward(in.cell, params[direction], present_team_for(sizes, host->rows));
      }
    });
  }
  finals.insert(finals.begin(), *output);
  return finals;
}

Tensors stack(std::string cell, Tensor input, Tensors states, Tensors reset_states, Tensors weights, int64_t layers,
              int64_t directions, OptionalTensor lengths, OptionalTensor batch_sizes, OptionalTensor offsets,
              OptionalTensor reset, bool reverse, OptionalTensor packed, std::vector<double> numbers) {
  ScanInputs in = inference_inputs(std::move(cell), input, std::move(numbers));
  in.lengths = lengths;
  in.batch_sizes = batch_sizes;
  in.offsets = offsets;
  in.reset = reset;
  in.reverse = reverse;
  const StackWeights all(weights, packed, layers, directions, in);
  return run_stack(std::move(in), states, reset_states, all, layers, directions);
}

// The states that an op takes by name, as those of the other ops.
Tensors states_of(const OptionalTensor& h, const OptionalTensor& c, const CellFacts& cell) {
  STD_TORCH_CHECK(c.has_value() == (h && cell.cell_states > 0), "fastrnn: c ",
                  c ? "is given, but h is not, or the cell has none" : "is missing");
  Tensors states;
  if (h) states.push_back(*h);
  if (c) states.push_back(*c);
  return states;
}

std::tuple<Tensor, Tensor, Tensor> packed_stack(Tensor input, OptionalTensor h_0, OptionalTensor c_0, Tensor packed,
                                                OptionalTensor reset, bool reverse) {
  const PackedHeader& header = packed_header(packed);
  ScanInputs in = inference_inputs(header.cell.data(), input);
  in.reset = reset;
  in.reverse = reverse;
  const StackWeights all(header, in);
  const Tensors states = states_of(h_0, c_0, in.facts);
  Tensors results = run_stack(std::move(in), states, {}, all, header.layers, header.directions);
  return {results[0], results[1], results.size() > 2 ? results[2] : empty(input, {0})};
}

// A row of a batch, or the only one of a tensor without a batch.
template <class S>
Matrix<S> rows_of(const Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {data_of<S>(tensor), tensor.dim() == 2 ? tensor.stride(0) : 0, tensor.stride(-1)};
}

// Returns the next states. One step of a sample has the shape of its batch's, less the batch.
Tensors run_step(ScanInputs in, const Tensors& states, const StackWeights& all) {
  const Tensor input = *in.input;
  const CellFacts& facts = in.facts;
  const int64_t rank = input.dim();
  STD_TORCH_CHECK(rank == 1 || rank == 2, "fastrnn: input has ", rank, " dimensions, expected 1 or 2");
  const int64_t N = rank == 2 ? input.size(0) : 1;
  ScanSizes sizes = all.sizes(in, N);
  sizes.T = 1;
  check_bounds(sizes);
  all.enter(0, in, sizes);
  STD_TORCH_CHECK(sizes.R == sizes.H && !in.weight_hr, "fastrnn: a cell has no projection");
  const auto shape = [&](int64_t columns) { return rank == 2 ? Shape{N, columns} : Shape{columns}; };
  const size_t kinds = check_state_count(states, "hidden", facts);
  const std::array columns{sizes.H, facts.cell_states * sizes.H};
  Tensors next;
  for (size_t kind = 0; kind < kinds; ++kind) {
    if (!states.empty()) {
      check_like(states[kind], "hidden", input.scalar_type(), input);
      check_shape(states[kind], "hidden", shape(columns[kind]));
    }
    next.push_back(empty(input, shape(columns[kind])));
  }
  in.input.reset();  // p.x is its view: a step has no dimension of time
  dispatch_real_dtype(input.scalar_type(), [&]<class S>() {
    auto p = scan_params<ScanParams<S>>(in, sizes, {}, 0);
    p.schedule.T = 1;
    p.schedule.N = N;
    const auto x = rows_of<const S>(input);
    p.x = {x.data, nullptr, nullptr, 0, x.row_stride, x.col_stride};
    if (!states.empty()) p.h_0 = rows_of<const S>(states[0]);
    if (states.size() == 2) p.c_0 = rows_of<const S>(states[1]);
    p.h_n = rows_of<S>(next[0]);
    if (kinds == 2) p.c_n = rows_of<S>(next[1]);
    all.set(0, in.cell, p);
    p.y = {p.h_n.data, nullptr, nullptr, 0, p.h_n.row_stride, p.h_n.col_stride};  // the only step's h is the last one
    kernels_for<S>(in.cell, instruction_set()).forward(in.cell, p, present_team_for(sizes, N));
  });
  return next;
}

Tensors step(std::string cell, Tensor input, Tensors states, Tensors weights, OptionalTensor packed,
             std::vector<double> numbers) {
  ScanInputs in = inference_inputs(std::move(cell), input, std::move(numbers));
  const StackWeights all(weights, packed, 1, 1, in);
  return run_step(std::move(in), states, all);
}

std::tuple<Tensor, Tensor> packed_step(Tensor input, OptionalTensor h, OptionalTensor c, Tensor packed) {
  const PackedHeader& header = packed_header(packed);
  STD_TORCH_CHECK(header.entries() == 1, "fastrnn: a cell has one layer and direction; packed has ", header.entries());
  ScanInputs in = inference_inputs(header.cell.data(), input);
  const StackWeights all(header, in);
  const Tensors states = states_of(h, c, in.facts);
  Tensors next = run_step(std::move(in), states, all);
  return {next[0], next.size() > 1 ? next[1] : empty(input, {0})};
}

WeightType weight_type(const std::string& name, const Tensor& weight) {
  if (name.empty()) return WeightType::kOperand;
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && (name == "bfloat16" || name == "int8"),
                  "fastrnn: float32 weights can be packed as bfloat16 or int8; got '", name, "' and dtype ",
                  static_cast<int>(weight.scalar_type()));
  return name == "int8" ? WeightType::kInt8 : WeightType::kBFloat16;
}

void write_name(std::string_view name, std::array<char, 16>& out) {
  STD_TORCH_CHECK(name.size() < out.size(), "fastrnn: the name ", std::string(name), " is too long");
  std::copy(name.begin(), name.end(), out.begin());
}

Tensor prepack(std::string cell, Tensors weights, int64_t layers, int64_t directions, std::string type) {
  STD_TORCH_CHECK(is_built_in(cell), "fastrnn: cell '", cell, "' is none of the library's, whose weights are packed");
  const int64_t each = check_counts(weights, layers, directions, cell_facts(cell));
  PackedHeader header{.dtype = static_cast<int32_t>(weights[0].scalar_type()),
                      .type = weight_type(type, weights[0]),
                      .directions = static_cast<int32_t>(directions),
                      .layers = layers};
  write_name(cell, header.cell);
  write_name(instruction_set().name, header.set);
  ScanInputs in = inference_inputs(std::move(cell), weights[0]);
  Tensor packed;
  dispatch_real_dtype(weights[0].scalar_type(), [&]<class S>() {
    // Calls f(the params of a layer and direction).
    const auto for_entries = [&](auto&& f) {
      for (int64_t entry = 0; entry < header.entries(); ++entry) {
        take_weights(weights, entry, each, in);
        in.input = in.weight_ih;  // of which the checks ask type and device
        ScanSizes sizes = check_sizes(in, 0);
        if (entry == 0) {
          header.I = sizes.I;
          header.H = sizes.H;
          header.R = sizes.R;
          STD_TORCH_CHECK(!in.weight_hr || sizes.R < sizes.H, "fastrnn: weight_hr projects ", sizes.H,
                          " hidden units to ", sizes.R, ", expected fewer");
        }
        sizes.I = entry < directions ? header.I : directions * header.R;
        sizes.H = header.H;
        sizes.R = header.R;
        check_bounds(sizes);
        check_weights(in, sizes);
        in.input.reset();
        auto p = scan_params<ScanParams<S>>(in, sizes, {}, 0);
        p.packed_as = header.type;
        f(entry, p);
      }
    };
    const Kernels<S>& engine = kernels<S>();
    for_entries([&](int64_t entry, const ScanParams<S>& p) {
      if (entry == 0) header.first_bytes = header.other_bytes = engine.packed_bytes(in.cell, p);
      if (entry == directions) header.other_bytes = engine.packed_bytes(in.cell, p);
    });
    packed = with_huge_pages(empty(weights[0], {header.begin(header.entries())}, ScalarType::Byte));
    char* const data = static_cast<char*>(packed.mutable_data_ptr());
    std::memcpy(data, &header, sizeof header);
    for_entries([&](int64_t entry, const ScanParams<S>& p) { engine.pack(in.cell, p, data + header.begin(entry)); });
  });
  return packed;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("prepack", TORCH_BOX(&prepack));
  m.impl("stack", TORCH_BOX(&stack));
  m.impl("step", TORCH_BOX(&step));
  m.impl("packed_stack", TORCH_BOX(&packed_stack));
  m.impl("packed_step", TORCH_BOX(&packed_step));
}

}  // namespace
}  // namespace fastrnn::cpu
