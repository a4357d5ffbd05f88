// Divides a step among the threads that came: by rows of the batch first, since these need no barrier, and by hidden
// units too if a thread has so few rows that its arithmetic does not hide the loads of the weights. Units are split by
// whole panels, and by narrower ones where a large team has more threads than panels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

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
  // A row has so many sums in a narrow panel, in vectors of Tuning::vector_bytes. Whole panels count as endless: those
  // of AVX-512 have four, whose latency is a cycle for each, less than its load. Those of shorter vectors do wait, and
  // narrower ones would wait as long.
  double chains = std::numeric_limits<double>::infinity();
};

// Returns the cycles of a step that is shared so. Each sum of a panel waits for its last multiply-add, whatever the
// number of rows. So a depth of the panel takes `latency` cycles at least, and a vector of it latency / chains; one row
// takes two panels at once where its thread has two.
inline double step_cycles(const StepWork& work, Grid grid, const Tuning& tuning) {
  const int64_t panels_each = (work.panels + grid.unit_groups - 1) / grid.unit_groups;
  const double share = static_cast<double>(panels_each) / work.panels;
  const double bytes = work.weight_bytes * share;
  const double rows_each = static_cast<double>((work.rows + grid.row_groups - 1) / grid.row_groups);
  const double load = bytes <= tuning.near_bytes() ? tuning.load_near : tuning.load_far;
  const double turns = static_cast<double>(rows_each > 1 ? panels_each : (panels_each + 1) / 2) / panels_each;
  const double wait = turns * tuning.latency / work.chains;
  return bytes / tuning.vector_bytes * std::max({rows_each * tuning.multiply, load, wait}) +
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

// How a step's weights may be cut into panels: units are so many vectors, of which a whole panel has `whole` at most.
struct StepUnits {
  int64_t rows;
  int64_t vecs;
  int64_t whole;
  double weight_bytes;
  double chains;  // of a vector of units

  StepWork in_panels_of(int64_t most_vecs) const {
    StepWork work{rows, (vecs + most_vecs - 1) / most_vecs, weight_bytes};
    if (most_vecs < whole) work.chains = most_vecs * chains;
    return work;
  }
};

// Returns how many vectors a panel has at most. A team with more threads than whole panels takes a half or a quarter
// of them if that, too, saves 3 %.
inline int64_t choose_panel_vecs(int64_t threads, const StepUnits& units, const Tuning& tuning) {
  const auto cycles = [&](int64_t most_vecs) {
    const StepWork work = units.in_panels_of(most_vecs);
    return step_cycles(work, choose_grid(threads, work, tuning), tuning);
  };
  int64_t best = units.whole;
  if (threads <= units.in_panels_of(best).panels) return best;
  double least = cycles(best);
  for (int64_t vecs = units.whole / 2; vecs >= 1; vecs /= 2)
    if (const double narrower = cycles(vecs); narrower < 0.97 * least) {
      best = vecs;
      least = narrower;
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
