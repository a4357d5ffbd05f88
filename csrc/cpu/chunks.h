// A scan on CPU is cut into chunks of steps and parts of a step. This is how, and what its two passes share.
//
// A chunk is small enough to stay in cache. Threads split the rows, then the units, of the steps (plan.h);
// a thread owns whole tiles of a weight gradient. So no sum depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cells/cell.h"
#include "cpu/gemm.h"
#include "cpu/isa_scans.h"
#include "cpu/micro_kernel.h"
#include "cpu/plan.h"
#include "cpu/tuning.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// Weight gradients sum this many rows from zero, then add the sum: long sequences do not lose small terms.
constexpr int64_t kSumRows = 1024;

inline int64_t chunk_steps(int64_t bytes, int64_t row_bytes, int64_t least_rows, int64_t rows_of_a_step,
                           int64_t steps) {
  const int64_t rows = std::clamp<int64_t>(bytes / row_bytes, least_rows, std::max(least_rows, Tuning::kMaxChunkRows));
  return std::clamp<int64_t>(rows / std::max<int64_t>(1, rows_of_a_step), 1, std::max<int64_t>(1, steps));
}

// A member of the team computes a part of a step: rows group, group + groups, ... of the batch, so that every group
// has the same work though rows are sorted by length, and the units of a range of panels.
struct Part {
  int64_t group, groups;
  int64_t unit_group, unit_groups;
  Range panels;

  Part(const Team::Member& member, Grid grid, int64_t all_panels)
      : group(member.index / grid.unit_groups),
        groups(grid.row_groups),
        unit_group(member.index % grid.unit_groups),
        unit_groups(grid.unit_groups),
        panels(cpu::share(all_panels, unit_group, unit_groups)) {}
  // All units of a group's rows.
  Part(int64_t row_group, int64_t row_groups, int64_t all_panels)
      : group(row_group), groups(row_groups), unit_group(0), unit_groups(1), panels{0, all_panels} {}

  int64_t rows(int64_t active) const { return std::max<int64_t>(0, (active - group + groups - 1) / groups); }
  int64_t row(int64_t i) const { return group + i * groups; }
};

// Both directions know the sizes, the row lengths of buffers, and how states are read and written.
template <class S>
struct Scan {
  using A = Accumulate<S>;
  using E = Operand<S>;  // products read it: inputs, h and gate gradients are kept in it
  using V = Vec<A>;

  const ScanParams<S>& p;
  const CellTraits& cell;
  const Team& team;
  const Schedule& schedule = p.schedule;
  const int64_t I = p.input_size;
  const int64_t H = p.hidden_size;
  const int64_t R = p.output_size;
  const int64_t N = schedule.N;
  const bool projected = p.projected();
  // Rows of sums have these lengths, and rows of operands those below.
  const int64_t i_sums = row_length<A>(I);
  const int64_t h_sums = row_length<A>(H);
  const int64_t r_sums = row_length<A>(R);
  const int64_t i_row = row_length<E>(I);
  const int64_t h_row = row_length<E>(H);
  const int64_t r_row = row_length<E>(R);
  // The states beside h lie side by side in these rows, each from a whole vector on; in tensors, and in rows that are
  // read as these are, H apart.
  const int64_t c_row = cell.cell_states * h_sums;
  const int64_t c_columns = cell.cell_states * H;
  const int64_t c_dense_row = row_length<A>(c_columns);

  // Rows of input products and of gate gradients have these lengths.
  int64_t gx_row() const { return row_length<A>(cell.input_gates * round_up_to_vec<A>(H)); }
  int64_t input_gate_row() const { return row_length<E>(cell.input_gates * H); }
  int64_t recurrent_gate_row() const { return row_length<E>(cell.recurrent_gates * H); }

  PackedWeights<S> packed_ih(int64_t units, bool ahead, KeptWeights kept = {}, int64_t unit_vecs = kMaxVecs) const {
    return {cell.input_gates, units, I, p.weights.ih, ahead, kept, cell.panel_gates(), unit_vecs};
  }
  PackedWeights<S> packed_hh(int64_t units, bool ahead, KeptWeights kept = {}, int64_t unit_vecs = kMaxVecs) const {
    return {cell.recurrent_gates, units, R, p.weights.hh, ahead, kept, cell.panel_gates(), unit_vecs};
  }
  PackedWeights<S> packed_hh_transposed(bool ahead, int64_t unit_vecs = kMaxVecs) const {
    return {1, R, cell.recurrent_gates * H, p.weights.hh.transposed(), ahead, {}, 0, unit_vecs};
  }

  // W_hh without values: only its sizes are asked.
  PackedWeights<S> sizes_of_hh(int64_t unit_vecs = kMaxVecs) const {
    return {cell.recurrent_gates, H, R, {}, false, {}, cell.panel_gates(), unit_vecs};
  }

  // Returns how many vectors of units a panel of a step's weights has at most. Weights that are packed already keep
  // their panels, and steps whose units are not shared by cost have whole ones.
  int64_t chosen_unit_vecs(const PackedWeights<S>& w) const {
    if (!shares_by_cost() || projected || p.packed) return w.whole_unit_vecs();
    return cpu::choose_panel_vecs(team.threads(), step_units(w), cpu::tuning());
  }
  int64_t forward_unit_vecs() const { return chosen_unit_vecs(sizes_of_hh()); }
  int64_t backward_unit_vecs() const { return chosen_unit_vecs(packed_hh_transposed(false)); }

  // Where others make the next chunk's input products meanwhile, short chunks let them begin soon.
  int64_t forward_chunk(bool leaves_threads) const {
    return chunk_steps(leaves_threads ? 0 : cpu::tuning().forward_chunk_bytes(),
                       i_row * sizeof(E) + gx_row() * sizeof(A), Tuning::kLeastForwardRows,
                       (N + team.threads() - 1) / team.threads(), schedule.T);
  }
  // Weight gradients are summed over so many steps at a time, whatever the team.
  int64_t backward_sum(bool grouped) const {
    const int64_t row = i_row + r_row + input_gate_row() + (cell.split_gate_gradients ? recurrent_gate_row() : 0) +
                        projected * (h_row + r_row) + cell.vectors * H;
    return chunk_steps(Tuning::kBackwardChunkBytes, row * sizeof(E),
                       grouped ? Tuning::kLeastStepsOfAGroup * N : Tuning::kLeastBackwardRows, N, schedule.T);
  }
  // Pairs of rows are laid out from a chunk's first row, so that it is summed whole.
  int64_t backward_chunk(bool grouped) const {
    const int64_t steps = backward_sum(grouped);
    if (kPaired<E> || N == 0) return steps;
    const int64_t sums = team.threads() * Tuning::kBackwardRowsOfAThread / (steps * N);
    return steps * std::clamp<int64_t>(sums, 1, std::max<int64_t>(1, (schedule.T + steps - 1) / steps));
  }

  // Tells whether steps that a full team shares so leave threads, which then make input products ahead.
  bool leaves_threads(Grid grid) const { return packs() && p.x && grid.threads() < team.threads(); }

  Grid whole_grid(int64_t unit_vecs) const { return grid(team.threads(), sizes_of_hh(unit_vecs)); }

  cpu::Choice choice() const {
    const int64_t unit_vecs = forward_unit_vecs();
    const Grid grid = whole_grid(unit_vecs);
    return {.not_in_lanes = {},
            .packs = packs(),
            .leaves_threads = leaves_threads(grid),
            .grid = grid,
            .forward_chunk = forward_chunk(leaves_threads(grid)),
            .backward_chunk = backward_chunk(false),
            .forward_unit_vecs = unit_vecs,
            .backward_unit_vecs = backward_unit_vecs()};
  }

  // These rows follow each other at one distance.
  template <class T>
  struct Rows {
    T* data = nullptr;
    int64_t distance = 0;
  };

  // Returns a group's rows of some steps, one step's after the other's, if a product can take them where they lie; else
  // null.
  template <class T>
  Rows<T> rows_in_place(const Sequence<T>& sequence, Range steps, int64_t group, int64_t groups) const {
    if (!std::is_same_v<std::remove_const_t<T>, E> || kPaired<E> || !sequence || sequence.col_stride != 1 ||
        sequence.sample_start || schedule.order || steps.size() == 0)
      return {};
    const auto rows_of = [&](int64_t s) { return (schedule.rows(schedule.step(s)) - group + groups - 1) / groups; };
    const auto first_row = [&](int64_t s) { return sequence.row(schedule.step(s), group); };
    const int64_t within_a_step = groups * sequence.sample_stride;
    int64_t distance = within_a_step;
    if (rows_of(steps.begin) == 1 && steps.size() > 1) distance = first_row(steps.begin + 1) - first_row(steps.begin);
    for (int64_t s = steps.begin; s < steps.end; ++s) {
      if (rows_of(s) > 1 && distance != within_a_step) return {};
      if (s + 1 < steps.end && first_row(s + 1) - first_row(s) != rows_of(s) * distance) return {};
    }
    return {first_row(steps.begin), distance};
  }

  // Loads the vectors of a cell, each from a whole vector on.
  void load_vectors(A* out) const {
    std::fill_n(out, cell.vectors * h_sums, A(0));
    for (int k = 0; k < cell.vectors; ++k)
      gather(&p.weights.vectors[k * H], p.weights.vectors.stride, out + k * h_sums, H);
  }

  // Tells whether weights are packed before the steps: a single step of few rows reads them once.
  bool packs() const { return p.packed || schedule.T > 1 || N > kFusedRows; }

  bool shares_by_cost() const { return cell.recurrent_gates > 0 && packs(); }

  cpu::StepUnits step_units(const PackedWeights<S>& w) const {
    return {.rows = N,
            .vecs = w.vecs(),
            .whole = w.whole_unit_vecs(),
            .weight_bytes = static_cast<double>(w.bytes()),
            .chains = w.gates() * Vec<A>::kWidth * sizeof(A) / cpu::tuning().vector_bytes};
  }

  // Shares a step by the panels of what it multiplies with. A projection mixes all units of a row, which is then never
  // split.
  Grid grid(int64_t threads, const PackedWeights<S>& w) const {
    // Without a recurrent product a step reads no weights, and no sample waits for another, nor a unit.
    if (cell.recurrent_gates == 0) {
      const int64_t row_groups = std::clamp<int64_t>(N, 1, threads);
      return {row_groups, projected ? 1 : std::min(threads / row_groups, w.panels())};
    }
    // Weights that are packed where they are read are best read by one thread.
    if (!packs()) return {1, projected ? 1 : std::min(threads, w.panels())};
    cpu::StepWork work = step_units(w).in_panels_of(w.most_unit_vecs());
    if (projected) work.panels = 1;
    return cpu::choose_grid(threads, work, cpu::tuning());
  }

  // Clears a row past `columns`: products read whole steps of depth.
  static void clear_padding(E* rows, Range range, int64_t columns, int64_t row) {
    for (int64_t r = range.begin; kPaired<E> && r < range.end; ++r)
      std::fill(rows + r * row + columns, rows + (r + 1) * row, E{});
  }

  // Loads rows in a range, in the order of the walk. A null tensor is zero. Columns lie side by side.
  template <class O>
  void load_state(Matrix<const S> state, Range rows, int64_t columns, O* out, int64_t row) const {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      std::fill_n(out + r * row, row, O{});
      if (state) gather(state.row(schedule.sample(r)), state.col_stride, out + r * row, columns);
    }
  }

  // The same for the states beside h, each of which begins at a whole vector.
  void load_cell_states(Matrix<const S> states, Range rows, A* out) const {
    for (int k = 0; k < cell.cell_states; ++k) {
      const Matrix<const S> state = states.from_column(k * H);
      for (int64_t r = rows.begin; r < rows.end; ++r) {
        A* const to = out + r * c_row + k * h_sums;
        std::fill_n(to, h_sums, A(0));
        if (state) gather(state.row(schedule.sample(r)), state.col_stride, to, H);
      }
    }
  }

  void store_cell_states(const A* row, Matrix<S> states, int64_t r) const {
    for (int k = 0; k < cell.cell_states; ++k) store_state(row + k * h_sums, states.from_column(k * H), H, r);
  }

  template <class O>
  void store_state(const O* row, Matrix<S> state, int64_t columns, int64_t r) const {
    if (state) scatter(row, state.row(schedule.sample(r)), state.col_stride, columns);
  }
};

}  // namespace fastrnn::FASTRNN_ISA
