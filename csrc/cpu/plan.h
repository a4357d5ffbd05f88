// Divides a step among the threads that came: by rows of the batch first, since these need no barrier, and by hidden
// units too if a thread has so few rows that its arithmetic does not hide the loads of the weights.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastrnn::cpu {

// row_groups * unit_groups threads take part. The members of a row group share its rows, and meet after every step.
struct Grid {
  int64_t row_groups;
  int64_t unit_groups;

  int64_t threads() const { return row_groups * unit_groups; }
};

// Orders of magnitude of today's cores, in cycles. They choose among plans with the same results.
struct StepCosts {
  double multiply = 0.5;    // a vector of weights with one row
  double load_near = 1.3;   // a vector of weights from the second-level cache
  double load_far = 8;      // or from beyond it
  double near_bytes = 1e6;  // as many stay in the second-level cache
  double barrier = 1200;    // of two threads
  double vector_bytes = 64;
};

// `panels` is the number of parts that units can be split into, `weight_bytes` the size of the weights that a step
// reads.
inline Grid choose_grid(int64_t threads, int64_t rows, int64_t panels, double weight_bytes,
                        const StepCosts& cost = {}) {
  const auto cycles = [&](Grid grid) {
    const double share = static_cast<double>((panels + grid.unit_groups - 1) / grid.unit_groups) / panels;
    const double bytes = weight_bytes * share;
    const double rows_each = static_cast<double>((rows + grid.row_groups - 1) / grid.row_groups);
    const double load = bytes <= cost.near_bytes ? cost.load_near : cost.load_far;
    return bytes / cost.vector_bytes * std::max(rows_each * cost.multiply, load) +
           (grid.unit_groups > 1 ? cost.barrier : 0);
  };
  Grid best{1, 1};
  for (int64_t row_groups = 1; row_groups <= std::min(threads, rows); ++row_groups)
    for (int64_t unit_groups = 1; unit_groups <= std::min(threads / row_groups, panels); ++unit_groups)
      if (cycles({row_groups, unit_groups}) < cycles(best)) best = {row_groups, unit_groups};
  return best;
}

}  // namespace fastrnn::cpu
