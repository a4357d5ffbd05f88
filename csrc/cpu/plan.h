// Divides a step among the threads that came: by rows of the batch first, since these need no barrier, and by hidden
// units too if a thread has so few rows that its arithmetic does not hide the loads of the weights.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/team.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu {

// row_groups * unit_groups threads take part. The members of a row group share its rows, and meet after every step.
struct Grid {
  int64_t row_groups;
  int64_t unit_groups;

  int64_t threads() const { return row_groups * unit_groups; }
};

// Returns the cycles of a barrier. At the fullest node of each level of the tree, arrivals follow each other.
inline double barrier_cycles(int64_t threads, const Tuning& tuning) {
  if (threads <= 1) return 0;
  int64_t moves = 2;  // of the phase
  for (int64_t members = threads; members > 1; members = (members + BarrierLine::kFanIn - 1) / BarrierLine::kFanIn)
    moves += std::min(members, BarrierLine::kFanIn);
  return moves * tuning.line_move + (threads - 2) * tuning.line_read;
}

// What a step must do: `panels` is the number of parts that units can be split into, `weight_bytes` the size of the
// weights that it reads.
struct StepWork {
  int64_t rows;
  int64_t panels;
  double weight_bytes;
};

// Returns the cycles of a step that is shared so.
inline double step_cycles(const StepWork& work, Grid grid, const Tuning& tuning) {
  const double share = static_cast<double>((work.panels + grid.unit_groups - 1) / grid.unit_groups) / work.panels;
  const double bytes = work.weight_bytes * share;
  const double rows_each = static_cast<double>((work.rows + grid.row_groups - 1) / grid.row_groups);
  const double load = bytes <= tuning.near_bytes() ? tuning.load_near : tuning.load_far;
  return bytes / tuning.vector_bytes * std::max(rows_each * tuning.multiply, load) +
         barrier_cycles(grid.unit_groups, tuning);
}

// Row groups each read the weights of their units, from caches and memories that they share, and more threads wait for
// each other. The costs know nothing of either, so a plan with a barrier must save 3 % to be preferred.
inline Grid choose_grid(int64_t threads, const StepWork& work, const Tuning& tuning) {
  Grid best{1, 1};
  double least = step_cycles(work, best, tuning);
  for (int64_t row_groups = 1; row_groups <= std::min(threads, work.rows); ++row_groups)
    for (int64_t unit_groups = 1; unit_groups <= std::min(threads / row_groups, work.panels); ++unit_groups) {
      const double cycles = step_cycles(work, {row_groups, unit_groups}, tuning);
      if (cycles < (unit_groups > 1 ? 0.97 * least : least)) {
        best = {row_groups, unit_groups};
        least = cycles;
      }
    }
  return best;
}

// Returns into how many ranges the threads split the columns of a weight gradient; they split its rows into `threads`
// divided by that. A thread reads the factors of its rows and of its columns, which together are fewest if its block is
// square. Columns are split at whole tiles of so many.
inline int64_t column_parts(int64_t threads, int64_t rows, int64_t columns, int64_t tile) {
  const auto factors = [&](int64_t parts) {
    return static_cast<double>(rows * parts) / threads + static_cast<double>(columns) / parts;
  };
  int64_t best = 1;
  for (int64_t parts = 2; parts <= std::min(threads, columns / tile); ++parts)
    if (threads % parts == 0 && factors(parts) < factors(best)) best = parts;
  return best;
}

}  // namespace fastrnn::cpu
