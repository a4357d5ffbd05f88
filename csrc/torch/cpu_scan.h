// What the ops on CPU share: the walk over a batch, the threads it is worth, and its sequences.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/tuning.h"
#include "torch/instruction_sets.h"
#include "torch/op.h"

namespace fastrnn::cpu {

// Below this a fork and join costs more than it saves: a core does so much in 20 to 50 microseconds.
constexpr double kMinFlopPerThread = 1e6;
// A few rows wait for weights instead: a core reads so many from beyond its caches in about 7 microseconds.
constexpr int64_t kMinWeightsPerThread = int64_t{1} << 17;

inline Team team_of(int64_t threads) {
  return {threads, [](int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
            torch::stable::parallel_for(0, parts, 1, body);
          }};
}

// `rows` is the number of steps that all samples run together.
inline Team team_for(const ScanSizes& sizes, int64_t rows) {
  const CellFacts& cell = sizes.cell;
  const int64_t weights = sizes.H * (cell.input_gates * sizes.I + cell.recurrent_gates * sizes.R);
  const auto of_flop = static_cast<int64_t>(2.0 * rows * weights / kMinFlopPerThread);
  const int64_t useful = std::max({int64_t{1}, of_flop, weights / kMinWeightsPerThread});
  return team_of(std::min(most_threads(), useful));
}

// Whether a call takes its threads though they were held up: a test of threads must not pass on one.
inline bool keeps_threads() {
  static const bool keeps = std::getenv("FASTRNN_KEEP_THREADS") != nullptr;
  return keeps;
}

// The same, but for one thread where others are held up.
inline Team present_team_for(const ScanSizes& sizes, int64_t rows) {
  const Team team = team_for(sizes, rows);
  return team.threads() > 1 && is_crowded() && !keeps_threads() ? team_of(1) : team;
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

// The set is asked for once a call: another thread may change it meanwhile.
template <class S>
const Kernels<S>& kernels_for(const std::string& cell, const InstructionSet& set) {
  STD_TORCH_CHECK(is_built_in(cell) || cell_kernels<S>(cell, set), "fastrnn: cell '", cell,
                  "' is not compiled for dtype ", std::string(kTypeName<S>), " and instruction set ",
                  std::string(cell_instruction_set(set)), "; fastrnn.cells.build compiles it");
  return kernels<S>(set);
}

// Tells whether weights that every step reads stay in the cache of the core that reads them.
template <class S>
bool are_near(const ScanSizes& sizes) {
  const int64_t count = sizes.cell.recurrent_gates * sizes.H * sizes.R;
  return static_cast<double>(count) * sizeof(S) <= tuning().near_bytes();
}

// Tells whether two directions run best side by side, each on a thread of its own: one has too little work for more, or
// two threads would share it though either keeps the weights near. Then nobody waits at a barrier, or for the next
// chunk. A larger team shares what lies beside the steps: `beside` multiply-adds for each of theirs, with one direction
// after the other.
template <class S>
bool suit_a_thread_each(const Kernels<S>& kernels, const std::string& cell, const ScanParams<S>& p,
                        const ScanSizes& sizes, int64_t rows, double beside) {
  if (present_team_for(sizes, 2 * rows).threads() == 1) return false;
  const Team team = present_team_for(sizes, rows);
  if (team.threads() == 1) return true;
  const Grid grid = kernels.choice(cell, p, team).grid;
  const bool leaves_few = team.threads() == 2 || (grid.threads() == 1 && beside <= 1);
  return leaves_few && are_near<S>(sizes);
}

// Return the multiply-adds beside a step's for each of its own: forward of the input products, backward also of all
// weight gradients.
inline double forward_beside(const ScanSizes& sizes) {
  const CellFacts& cell = sizes.cell;
  return static_cast<double>(cell.input_gates * sizes.I) /
         static_cast<double>(std::max<int64_t>(1, cell.recurrent_gates * sizes.R));
}
inline double backward_beside(const ScanSizes& sizes) { return 1 + 2 * forward_beside(sizes); }

// Returns the row at which each step of a packed input starts.
inline std::vector<int64_t> step_starts(const ScanInputs& in) {
  std::vector<int64_t> starts;
  if (!in.batch_sizes) return starts;
  const int64_t* active = in.batch_sizes->const_data_ptr<int64_t>();
  starts.resize(in.batch_sizes->size(0));
  std::exclusive_scan(active, active + starts.size(), starts.begin(), int64_t{0});
  return starts;
}

inline RowStarts row_starts(const ScanInputs& in, const std::vector<int64_t>& of_steps) {
  return {in.batch_sizes ? of_steps.data() : nullptr, in.offsets ? in.offsets->const_data_ptr<int64_t>() : nullptr};
}

// A fresh sequence of small pages takes 256 faults a MB, which would cost as much as the arithmetic.
inline Tensor with_huge_pages(Tensor tensor) {
  if (tensor.numel() > 0) prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

constexpr int64_t kClearedAtOnce = int64_t{1} << 20;  // bytes of a sequence that are worth a thread

// Clears the rows of a padded sequence that lie past a sample's length. Clearing all of it would touch every page
// twice.
inline void clear_padding(Tensor& padded, const int64_t* lengths) {
  const int64_t T = padded.size(0), N = padded.size(1);
  const int64_t row = padded.size(2) * padded.element_size();
  char* data = static_cast<char*>(padded.mutable_data_ptr());
  for_ranges(T, std::max<int64_t>(1, kClearedAtOnce / std::max<int64_t>(1, N * row)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t n = 0; n < N; ++n)
        if (t >= lengths[n]) std::memset(data + (t * N + n) * row, 0, row);
  });
}

inline Tensor new_sequence(const ScanInputs& in, const Shape& shape, ScalarType dtype, bool seen) {
  if (seen && has_holes(in)) return torch::stable::new_zeros(*in.input, shape.ref(), dtype);
  Tensor sequence = with_huge_pages(empty(*in.input, shape, dtype));
  const bool padded = in.lengths && !in.offsets && sequence.numel() > 0;
  if (seen && padded) clear_padding(sequence, in.lengths->const_data_ptr<int64_t>());
  return sequence;
}

}  // namespace fastrnn::cpu
