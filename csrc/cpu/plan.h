// Divides a step among the threads that came: by rows of the batch first, since these need no barrier, and by hidden
// units too if a thread has so few rows that its arithmetic does not hide the loads of the weights.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/team.h"

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
  double vector_bytes = 64;
  // A cache line moves to another core in 50 to 150 ns on chips with many. So a barrier of two threads is 1200 cycles:
  // two arrivals, and the phase moves to its writer and back to its reader.
  double line_move = 300;
  double line_read = 30;  // each further reader queues for a line that is shared already: 10 ns

  // At the fullest node of each level of the tree, arrivals follow each other.
  double barrier(int64_t threads) const {
    if (threads <= 1) return 0;
    int64_t moves = 2;  // of the phase
    for (int64_t members = threads; members > 1; members = (members + BarrierLine::kFanIn - 1) / BarrierLine::kFanIn)
      moves += std::min(members, BarrierLine::kFanIn);
    return moves * line_move + (threads - 2) * line_read;
  }
};

// What a step must do: `panels` is the number of parts that units can be split into, `weight_bytes` the size of the
// weights that it reads.
struct StepWork {
  int64_t rows;
  int64_t panels;
  double weight_bytes;
};

// Returns the cycles of a step that is shared so.
inline double step_cycles(const StepWork& work, Grid grid, const StepCosts& cost = {}) {
  const double share = static_cast<double>((work.panels + grid.unit_groups - 1) / grid.unit_groups) / work.panels;
  const double bytes = work.weight_bytes * share;
  const double rows_each = static_cast<double>((work.rows + grid.row_groups - 1) / grid.row_groups);
  const double load = bytes <= cost.near_bytes ? cost.load_near : cost.load_far;
  return bytes / cost.vector_bytes * std::max(rows_each * cost.multiply, load) + cost.barrier(grid.unit_groups);
}

// Row groups each read the weights of their units, from caches and memories that they share, and more threads wait for
// each other. The costs know nothing of either, so a plan with a barrier must save 3 % to be preferred.
inline Grid choose_grid(int64_t threads, const StepWork& work, const StepCosts& cost = {}) {
  Grid best{1, 1};
  double least = step_cycles(work, best, cost);
  for (int64_t row_groups = 1; row_groups <= std::min(threads, work.rows); ++row_groups)
    for (int64_t unit_groups = 1; unit_groups <= std::min(threads / row_groups, work.panels); ++unit_groups) {
      const double cycles = step_cycles(work, {row_groups, unit_groups}, cost);
      if (cycles < (unit_groups > 1 ? 0.97 * least : least)) {
        best = {row_groups, unit_groups};
        least = cycles;
      }
    }
  return best;
}

}  // namespace fastrnn::cpu
