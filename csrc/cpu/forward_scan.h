// The fused forward pass on CPU computes all input products of a chunk at once, and then walks its steps.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/cell_kernels.h"
#include "cpu/chunks.h"
#include "cpu/packed_layer.h"

namespace fastrnn::FASTRNN_ISA {

template <class S>
class ForwardScan : Scan<S> {
  using Base = Scan<S>;
  using typename Base::A;
  using typename Base::E;
  using typename Base::V;
  using Base::H, Base::I, Base::cell, Base::N, Base::p, Base::projected, Base::R, Base::schedule, Base::team;
  using Base::c_row, Base::h_row, Base::h_sums, Base::i_row, Base::r_row, Base::r_sums;
  template <class, class>
  friend struct CellUpdate;

  const CellKernels<S>& kernels_;
  // h as it was before rounding to an operand is kept for the next step, or for h_n.
  static constexpr bool kRoundsState = std::is_same_v<S, RoundedFloat>;
  const bool keeps_sums_ = kRoundsState || (kPaired<E> && cell.reads_previous_h);
  const bool steps_meet_ =
      cell.recurrent_gates > 0 || schedule.reset;  // a step reads what others wrote in the last one

  const bool packs_ = this->packs();
  const PackedLayer<S> kept_{cell, p};
  const int64_t unit_vecs_ = this->forward_unit_vecs();
  PackedWeights<S> w_ih_ = this->packed_ih(H, packs_, kept_.ih(), unit_vecs_);
  PackedWeights<S> w_hh_ = this->packed_hh(H, packs_, kept_.hh(), unit_vecs_);
  PackedWeights<S> w_hr_{1, projected ? R : 0, H, p.weights.hr, packs_, kept_.hr()};
  Buffer<A> packed_b_ih_ = Buffer<A>(p.packed ? 0 : w_ih_.width());
  Buffer<A> packed_b_hh_ = Buffer<A>(p.packed ? 0 : w_hh_.width());
  const A* const b_ih_ = p.packed ? kept_.bias_ih() : packed_b_ih_.get();
  const A* const b_hh_ = p.packed ? kept_.bias_hh() : packed_b_hh_.get();
  Buffer<A> vectors_ = Buffer<A>(cell.vectors * h_sums);

  // h is read by all panels of a step while the next one is written. Both start as h_0: a row of the reverse walk
  // may join at any step.
  Buffer<E> h_even_ = Buffer<E>(N * r_row);
  Buffer<E> h_odd_ = Buffer<E>(N * r_row);
  Buffer<A> h_sums_ = Buffer<A>(keeps_sums_ ? N * r_sums : 0);
  Buffer<A> c_ = Buffer<A>(N * c_row);
  // A reset replaces the states by these.
  const int64_t resetting_ = schedule.reset ? N : 0;
  Buffer<E> reset_h_ = Buffer<E>(resetting_ * r_row);
  Buffer<A> reset_h_sums_ = Buffer<A>(keeps_sums_ ? resetting_ * r_sums : 0);
  Buffer<A> reset_c_ = Buffer<A>(resetting_ * c_row);
  Buffer<E> unprojected_ = Buffer<E>(projected ? N * h_row : 0);  // [N, h_row]: h before W_hr
  Buffer<A> projected_ = Buffer<A>(projected ? N * r_sums : 0);   // [N, r_sums]: h after it

  // The chunk's rows, those of a row group side by side; and those of the next chunk, where it is made ahead.
  const int64_t gx_row_ = this->gx_row();
  const bool leaves_threads_ = this->leaves_threads(this->whole_grid(unit_vecs_));
  const int64_t chunk_steps_ = this->forward_chunk(leaves_threads_);
  const int64_t chunk_rows_ = chunk_steps_ * (N + team.threads());
  const int64_t all_rows_ = leaves_threads_ ? 2 * chunk_rows_ : chunk_rows_;
  Buffer<E> x_ = Buffer<E>(all_rows_ * i_row);
  Buffer<A> gx_ = Buffer<A>(all_rows_ * gx_row_);  // in panel order

 public:
  ForwardScan(const ScanParams<S>& params, const CellKernels<S>& kernels, const Team& threads)
      : Base{params, kernels.cell, threads}, kernels_(kernels) {}

  void run() {
    team.run([&](const Team::Member& member) {
      [[maybe_unused]] const MatrixRegisters registers;
      prepare(member);
      member.barrier();
      const Grid grid = this->grid(member.count, w_hh_);
      const bool ahead = leaves_threads_ && grid.threads() < member.count;
      if (member.index < grid.threads())
        walk(member, grid, ahead);
      else if (ahead)
        products_ahead(member, grid);
    });
  }

 private:
  void prepare(const Team::Member& member) {
    w_ih_.pack(member.share(w_ih_.panels()));
    w_hh_.pack(member.share(w_hh_.panels()));
    w_hr_.pack(member.share(w_hr_.panels()));
    if (member.index == 0 && !p.packed) {
      w_ih_.pack_bias(p.weights.bias_ih, packed_b_ih_.get());
      w_hh_.pack_bias(p.weights.bias_hh, packed_b_hh_.get());
    }
    if (member.index == 0) this->load_vectors(vectors_.get());
    const Range rows = member.share(N);
    this->load_state(p.h_0, rows, R, h_even_.get(), r_row);
    this->load_state(p.h_0, rows, R, h_odd_.get(), r_row);
    if (keeps_sums_) this->load_state(p.h_0, rows, R, h_sums_.get(), r_sums);
    this->load_cell_states(p.c_0, rows, c_.get());
    if (schedule.reset) {
      this->load_state(p.reset_h, rows, R, reset_h_.get(), r_row);
      if (keeps_sums_) this->load_state(p.reset_h, rows, R, reset_h_sums_.get(), r_sums);
      this->load_cell_states(p.reset_c, rows, reset_c_.get());
    }
    this->clear_padding(x_.get(), member.share(all_rows_), I, i_row);
    if (projected) this->clear_padding(unprojected_.get(), rows, H, h_row);
  }

  // Walks a part of all steps.
  void walk(const Team::Member& member, Grid grid, bool ahead) {
    const Part part(member, grid, w_hh_.panels());
    const auto meet = [&] { member.barrier(part.group, part.unit_groups); };
    if (part.unit_group == 0) finish_rows(part, schedule.T > 0 ? schedule.rows(0) : 0, N, h_even_.get());
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      const Range steps = steps_of(chunk);
      if (ahead) {
        if (chunk == 0) input_products(grid, chunk, member.index, member.count);
        member.barrier();
      } else {
        if (chunk > 0 && !steps_meet_) meet();  // others may still read the last chunk's x
        input_products(part, chunk, meet);
      }
      int64_t row = first_row(part, chunk);
      for (int64_t s = steps.begin; s < steps.end; ++s) {
        step(part, s, row, meet);
        row += part.rows(schedule.rows(schedule.step(s)));
      }
    }
  }

  // Makes the input products of each chunk while others walk the one before: for a member without a part in steps.
  void products_ahead(const Team::Member& member, Grid grid) {
    if (chunks() > 0) input_products(grid, 0, member.index, member.count);
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      member.sit_out();
      if (chunk + 1 < chunks())
        input_products(grid, chunk + 1, member.index - grid.threads(), member.count - grid.threads());
    }
  }

  int64_t chunks() const { return N > 0 ? (schedule.T + chunk_steps_ - 1) / chunk_steps_ : 0; }
  Range steps_of(int64_t chunk) const {
    return {chunk * chunk_steps_, std::min((chunk + 1) * chunk_steps_, schedule.T)};
  }
  // Returns where a chunk's rows of the part's group begin in the buffers.
  int64_t first_row(const Part& part, int64_t chunk) const {
    const int64_t buffer = all_rows_ > chunk_rows_ ? chunk % 2 * chunk_rows_ : 0;
    return buffer + part.group * chunk_steps_ * ((N + part.groups - 1) / part.groups);
  }

  // Computes a part's input products of a chunk.
  template <class Meet>
  void input_products(const Part& part, int64_t chunk, Meet&& meet) {
    const int64_t rows = rows_of(part, chunk);
    gather_inputs(part, chunk, cpu::share(rows, part.unit_group, part.unit_groups));
    meet();
    multiply_inputs(part, chunk, {0, rows});
  }

  // Computes a share of a chunk's input products, that of some rows.
  void input_products(Grid grid, int64_t chunk, int64_t index, int64_t count) {
    for (int64_t group = 0; group < grid.row_groups; ++group) {
      const Part part(group, grid.row_groups, w_hh_.panels());
      const Range own = cpu::share(rows_of(part, chunk), index, count);
      gather_inputs(part, chunk, own);
      multiply_inputs(part, chunk, own);
    }
  }

  // Returns how many rows of a chunk the part's group has.
  int64_t rows_of(const Part& part, int64_t chunk) const {
    int64_t rows = 0;
    const Range steps = steps_of(chunk);
    for (int64_t s = steps.begin; s < steps.end; ++s) rows += part.rows(schedule.rows(schedule.step(s)));
    return rows;
  }

  typename Base::template Rows<const S> inputs_in_place(const Part& part, int64_t chunk) const {
    return this->rows_in_place(p.x, steps_of(chunk), part.group, part.groups);
  }

  // Copies x of a range of the group's rows, unless they are read where they lie.
  void gather_inputs(const Part& part, int64_t chunk, Range range) {
    if (!p.x || inputs_in_place(part, chunk).data) return;  // a cell may have no input
    E* const x = x_.get() + first_row(part, chunk) * i_row;
    int64_t first = 0;
    const Range steps = steps_of(chunk);
    for (int64_t s = steps.begin; s < steps.end && first < range.end; ++s) {
      const int64_t t = schedule.step(s);
      const int64_t rows = part.rows(schedule.rows(t));
      for (int64_t i = std::max<int64_t>(0, range.begin - first); i < std::min(rows, range.end - first); ++i)
        gather(p.x.row(t, schedule.sample(part.row(i))), p.x.col_stride, x + (first + i) * i_row, I);
      first += rows;
    }
  }

  void multiply_inputs(const Part& part, int64_t chunk, Range range) {
    const int64_t first = first_row(part, chunk) + range.begin;
    const E* x = x_.get() + first * i_row;
    int64_t row = i_row;
    if constexpr (std::is_same_v<S, E>)
      if (const auto lying = inputs_in_place(part, chunk); lying.data) {
        x = lying.data + range.begin * lying.distance;
        row = lying.distance;
      }
    multiply(range.size(), x, row, w_ih_, part.panels, b_ih_, gx_.get() + first * gx_row_, gx_row_);
  }

  // The step's first row is chunk_row in the chunk's buffers.
  template <class Meet>
  void step(const Part& part, int64_t s, int64_t chunk_row, Meet&& meet) {
    const int64_t t = schedule.step(s);
    const int64_t rows = part.rows(schedule.rows(t));
    if (rows == 0) return;
    E* h = (s % 2 ? h_odd_ : h_even_).get();
    E* h_next = (s % 2 ? h_even_ : h_odd_).get();
    if (schedule.reset) {
      if (part.unit_group == 0) reset_rows(part, t, rows, h);
      meet();
    }
    multiply_fused(rows, h + part.group * r_row, part.groups * r_row, w_hh_, part.panels, b_hh_,
                   [&](int64_t first, int64_t count, Range panels, const A* gh) {
                     kernels_.forward(*this, {part, t, first, count, panels, chunk_row, gh, h, h_next});
                   });
    if (projected) project(part, t, rows, h_next);
    const int64_t next_rows = s + 1 == schedule.T ? 0 : schedule.rows(schedule.step(s + 1));
    if (steps_meet_ || next_rows < schedule.rows(t)) meet();
    if (part.unit_group == 0) finish_rows(part, next_rows, schedule.rows(t), h_next);
  }

  void reset_rows(const Part& part, int64_t t, int64_t rows, E* h) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = part.row(i);
      if (!schedule.resets(t, r)) continue;
      std::copy_n(reset_h_.get() + r * r_row, r_row, h + r * r_row);
      if (keeps_sums_) std::copy_n(reset_h_sums_.get() + r * r_sums, r_sums, h_sums_.get() + r * r_sums);
      std::copy_n(reset_c_.get() + r * c_row, c_row, c_.get() + r * c_row);
    }
  }

  void project(const Part& part, int64_t t, int64_t rows, E* h_next) {
    multiply(rows, unprojected_.get() + part.group * h_row, part.groups * h_row, w_hr_, {0, w_hr_.panels()},
             static_cast<const A*>(nullptr), projected_.get() + part.group * r_sums, part.groups * r_sums);
    for (int64_t i = 0; i < rows; ++i) {
      const A* h = projected_.get() + part.row(i) * r_sums;
      gather(h, 1, h_next + part.row(i) * r_row, R);
      if constexpr (kRoundsState) std::copy_n(h, R, h_sums_.get() + part.row(i) * r_sums);
      scatter(h, p.y.row(t, schedule.sample(part.row(i))), 1, R);
    }
  }

  // Stores the final state of this part's rows in [begin, end).
  void finish_rows(const Part& part, int64_t begin, int64_t end, const E* h) {
    for (int64_t i = part.rows(begin); part.row(i) < end; ++i) {
      const int64_t r = part.row(i);
      if constexpr (kRoundsState)
        this->store_state(h_sums_.get() + r * r_sums, p.h_n, R, r);
      else
        this->store_state(h + r * r_row, p.h_n, R, r);
      this->store_cell_states(c_.get() + r * c_row, p.c_n, r);
    }
  }
};

}  // namespace fastrnn::FASTRNN_ISA
