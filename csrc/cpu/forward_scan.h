// The fused forward pass on CPU: for each chunk all input products at once, then the steps.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/chunks.h"

namespace fastrnn::FASTRNN_ISA {

template <class Cell, class S>
class ForwardScan : Scan<Cell, S> {
  using Base = Scan<Cell, S>;
  using typename Base::A;
  using typename Base::E;
  using typename Base::V;
  using Base::H, Base::I, Base::kGates, Base::N, Base::p, Base::projected, Base::R, Base::schedule, Base::team;
  using Base::h_row, Base::h_sums, Base::i_row, Base::r_row, Base::r_sums;
  static constexpr bool kHasC = Cell::kHasCellState;
  static constexpr bool kKeepsSums = kPaired<E> && Cell::kReadsPreviousH;  // h before its rounding to an operand

  const bool packs_ = this->packs();
  PackedWeights<S, kGates> w_ih_{H, I, p.weights.ih, packs_};
  PackedWeights<S, kGates> w_hh_{H, R, p.weights.hh, packs_};
  PackedWeights<S, 1> w_hr_{projected ? R : 0, H, p.weights.hr, packs_};
  Buffer<A> b_ih_ = Buffer<A>(w_ih_.width());
  Buffer<A> b_hh_ = Buffer<A>(w_hh_.width());

  // h is read by all panels of a step while the next one is written. Both start as h_0: a row of the reverse walk
  // may join at any step.
  Buffer<E> h_even_ = Buffer<E>(N * r_row);
  Buffer<E> h_odd_ = Buffer<E>(N * r_row);
  Buffer<A> h_sums_ = Buffer<A>(kKeepsSums ? N * r_sums : 0);
  Buffer<A> c_ = Buffer<A>(kHasC ? N * h_sums : 0);
  // What a reset replaces them by.
  const int64_t resetting_ = schedule.reset ? N : 0;
  Buffer<E> reset_h_ = Buffer<E>(resetting_ * r_row);
  Buffer<A> reset_h_sums_ = Buffer<A>(kKeepsSums ? resetting_ * r_sums : 0);
  Buffer<A> reset_c_ = Buffer<A>(kHasC ? resetting_ * h_sums : 0);
  Buffer<E> unprojected_ = Buffer<E>(projected ? N * h_row : 0);  // [N, h_row], h before W_hr
  Buffer<A> projected_ = Buffer<A>(projected ? N * r_sums : 0);   // [N, r_sums], h after it

  // The chunk's rows, those of a row group side by side.
  const int64_t gx_row_ = this->gx_row();
  const int64_t chunk_steps_ = this->forward_chunk();
  Buffer<E> x_ = Buffer<E>(chunk_steps_ * (N + team.threads()) * i_row);
  Buffer<A> gx_ = Buffer<A>(chunk_steps_ * (N + team.threads()) * gx_row_);  // in panel order

 public:
  ForwardScan(const ScanParams<S>& params, const Team& threads) : Base{params, threads} {}

  void run() {
    team.run([&](const Team::Member& member) {
      [[maybe_unused]] const MatrixRegisters registers;
      prepare(member);
      member.barrier();
      const Grid grid = this->grid(member.count, w_hh_.panels(), w_hh_.bytes());
      if (member.index >= grid.threads()) return;
      const Part part(member, grid, w_hh_.panels());
      const auto meet = [&] { member.barrier(part.group, part.unit_groups); };
      if (part.unit_group == 0) finish_rows(part, schedule.T > 0 ? schedule.rows(0) : 0, N, h_even_.get());
      for (int64_t begin = 0; begin < schedule.T && N > 0; begin += chunk_steps_) {
        const Range steps{begin, std::min(begin + chunk_steps_, schedule.T)};
        input_products(part, steps, meet);
        int64_t row = first_row(part);
        for (int64_t s = steps.begin; s < steps.end; ++s) {
          step(part, s, row, meet);
          row += part.rows(schedule.rows(schedule.step(s)));
        }
      }
    });
  }

 private:
  void prepare(const Team::Member& member) {
    w_ih_.pack(member.share(w_ih_.panels()));
    w_hh_.pack(member.share(w_hh_.panels()));
    w_hr_.pack(member.share(w_hr_.panels()));
    if (member.index == 0) {
      w_ih_.pack_bias(p.weights.bias_ih, b_ih_.get());
      w_hh_.pack_bias(p.weights.bias_hh, b_hh_.get());
    }
    const Range rows = member.share(N);
    this->load_state(p.h_0, rows, R, h_even_.get(), r_row);
    this->load_state(p.h_0, rows, R, h_odd_.get(), r_row);
    if (kKeepsSums) this->load_state(p.h_0, rows, R, h_sums_.get(), r_sums);
    if (kHasC) this->load_state(p.c_0, rows, H, c_.get(), h_sums);
    if (schedule.reset) {
      this->load_state(p.reset_h, rows, R, reset_h_.get(), r_row);
      if (kKeepsSums) this->load_state(p.reset_h, rows, R, reset_h_sums_.get(), r_sums);
      if (kHasC) this->load_state(p.reset_c, rows, H, reset_c_.get(), h_sums);
    }
    this->clear_padding(x_.get(), member.share(chunk_steps_ * (N + team.threads())), I, i_row);
    if (projected) this->clear_padding(unprojected_.get(), rows, H, h_row);
  }

  // Of the part's row group, in the chunk's buffers.
  int64_t first_row(const Part& part) const {
    return part.group * chunk_steps_ * ((N + part.groups - 1) / part.groups);
  }

  template <class Meet>
  void input_products(const Part& part, Range steps, Meet&& meet) {
    const int64_t first = first_row(part);
    int64_t end = first;
    for (int64_t s = steps.begin; s < steps.end; ++s) {
      const int64_t t = schedule.step(s);
      const int64_t rows = part.rows(schedule.rows(t));
      const Range mine = cpu::share(p.x ? rows : 0, part.unit_group, part.unit_groups);  // a cell may have no input
      for (int64_t i = mine.begin; i < mine.end; ++i)
        gather(p.x.row(t, schedule.sample(part.row(i))), p.x.col_stride, x_.get() + (end + i) * i_row, I);
      end += rows;
    }
    meet();
    multiply(end - first, x_.get() + first * i_row, i_row, w_ih_, part.panels, b_ih_.get(), gx_.get() + first * gx_row_,
             gx_row_);
  }

  // chunk_row: of the step's first row, in the chunk's buffers.
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
    multiply_fused(rows, h + part.group * r_row, part.groups * r_row, w_hh_, part.panels, b_hh_.get(),
                   [&](int64_t first, int64_t count, int64_t panel, const A* gh) {
                     update(part, t, first, count, panel, chunk_row, gh, h, h_next);
                   });
    if (projected) project(part, t, rows, h_next);
    meet();
    const bool last = s + 1 == schedule.T;
    if (part.unit_group == 0)
      finish_rows(part, last ? 0 : schedule.rows(schedule.step(s + 1)), schedule.rows(t), h_next);
  }

  void reset_rows(const Part& part, int64_t t, int64_t rows, E* h) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = part.row(i);
      if (!schedule.resets(t, r)) continue;
      std::copy_n(reset_h_.get() + r * r_row, r_row, h + r * r_row);
      if (kKeepsSums) std::copy_n(reset_h_sums_.get() + r * r_sums, r_sums, h_sums_.get() + r * r_sums);
      if (kHasC) std::copy_n(reset_c_.get() + r * h_sums, h_sums, c_.get() + r * h_sums);
    }
  }

  // The cell of a panel's units for `count` rows of the part, as many side by side as hide their latency and fit the
  // registers. gh: their products.
  void update(const Part& part, int64_t t, int64_t first, int64_t count, int64_t panel, int64_t chunk_row, const A* gh,
              const E* h, E* h_next) {
    const int64_t width = kGates * w_hh_.unit_vecs(panel) * V::kWidth;
    const auto rows = [&]<int kRows, int kVecs>(int64_t i) FASTRNN_LAMBDA {
      update_rows<kRows, kVecs>(part, t, first + i, w_hh_.unit(panel),
                                gx_.get() + (chunk_row + first + i) * gx_row_ + w_ih_.offset(panel), gh + i * width, h,
                                h_next);
    };
    int64_t i = 0;
    if constexpr (kGates == 1) {
      switch (w_hh_.unit_vecs(panel)) {
        case 4:
          for (; i < count; ++i) rows.template operator()<1, 4>(i);
          break;
        case 3:
          for (; i < count; ++i) rows.template operator()<1, 3>(i);
          break;
        case 2:
          for (; i < count; ++i) rows.template operator()<1, 2>(i);
          break;
        default:
          for (; i < count; ++i) rows.template operator()<1, 1>(i);
      }
    } else {
      static_assert(w_hh_.kUnitVecs == 1);
      for (; i + 2 <= count; i += 2) rows.template operator()<2, 1>(i);
      for (; i < count; ++i) rows.template operator()<1, 1>(i);
    }
  }

  // The cell of kVecs vectors of units from `unit` on, for kRows rows of the part from the i-th on.
  template <int kRows, int kVecs>
  FASTRNN_FN void update_rows(const Part& part, int64_t t, int64_t i, int64_t unit, const A* gx, const A* gh,
                              const E* h, E* h_next) {
    using B = Bundle<V, kRows * kVecs>;
    int64_t row[kRows], sample[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = part.row(i + j);
      sample[j] = schedule.sample(row[j]);
    }
    // Part q of a bundle is vector q % kVecs of row q / kVecs.
    const auto offset = [&](int q, int64_t stride)
                            FASTRNN_LAMBDA { return row[q / kVecs] * stride + unit + q % kVecs * V::kWidth; };
    std::array<B, kGates> x_products, h_products;
    for (int g = 0; g < kGates; ++g) {
      const auto at = [g](int q, int64_t stride)
                          FASTRNN_LAMBDA { return q / kVecs * stride + (g * kVecs + q % kVecs) * V::kWidth; };
      x_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(gx + at(q, gx_row_)); });
      h_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(gh + at(q, kGates * kVecs * V::kWidth)); });
    }
    State<B> state;
    if constexpr (kKeepsSums)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(h_sums_.get() + offset(q, r_sums)); });
    else if constexpr (Cell::kReadsPreviousH)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(h + offset(q, r_row)); });
    if constexpr (kHasC) state.c = B::of([&](int q) FASTRNN_LAMBDA { return V::load(c_.get() + offset(q, h_sums)); });
    std::array<B, Cell::kSaved> saved;
    Cell::forward(x_products, h_products, state, saved);

    // The next step's lines are fetched meanwhile: they are far away, and a store to one would wait for it.
    const int64_t next = std::clamp<int64_t>(schedule.next(t), 0, schedule.T - 1);
    const auto store = [&]<class T>(const B& values, const Sequence<T>& to, int64_t column) FASTRNN_LAMBDA {
      for (int q = 0; q < kRows * kVecs; ++q) {
        const int64_t first = unit + q % kVecs * V::kWidth;
        store_as<T>(values.part[q], to.row(t, sample[q / kVecs]) + column + first, H - first);
        __builtin_prefetch(to.row(next, sample[q / kVecs]) + column + first, 1);
      }
    };
    for (int q = 0; q < kRows * kVecs; ++q) {
      store_as(state.h.part[q], projected ? unprojected_.get() + offset(q, h_row) : h_next + offset(q, r_row),
               V::kWidth);
      if constexpr (kKeepsSums) state.h.part[q].store(h_sums_.get() + offset(q, r_sums));
      if constexpr (kHasC) state.c.part[q].store(c_.get() + offset(q, h_sums));
    }
    if (!projected) store(state.h, p.y, 0);
    if constexpr (kHasC)
      if (p.cells) store(state.c, p.cells, 0);
    if (p.gates)
      for (int k = 0; k < Cell::kSaved; ++k) store(saved[k], p.gates, k * H);
  }

  void project(const Part& part, int64_t t, int64_t rows, E* h_next) {
    multiply(rows, unprojected_.get() + part.group * h_row, part.groups * h_row, w_hr_, {0, w_hr_.panels()},
             static_cast<const A*>(nullptr), projected_.get() + part.group * r_sums, part.groups * r_sums);
    for (int64_t i = 0; i < rows; ++i) {
      const A* h = projected_.get() + part.row(i) * r_sums;
      gather(h, 1, h_next + part.row(i) * r_row, R);
      scatter(h, p.y.row(t, schedule.sample(part.row(i))), 1, R);
    }
  }

  // Of rows [begin, end), those of the part have run their last step.
  void finish_rows(const Part& part, int64_t begin, int64_t end, const E* h) {
    for (int64_t i = part.rows(begin); part.row(i) < end; ++i) {
      const int64_t r = part.row(i);
      this->store_state(h + r * r_row, p.h_n, R, r);
      if (kHasC) this->store_state(c_.get() + r * h_sums, p.c_n, H, r);
    }
  }
};

}  // namespace fastrnn::FASTRNN_ISA
