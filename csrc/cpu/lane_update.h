// A cell's side of the kernels with samples in lanes (cpu/samples_in_lanes.h): the walk of a block of samples through
// all steps, forward and backward.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cells/cell.h"
#include "cpu/cell_kernels.h"
#include "cpu/micro_kernel.h"
#include "cpu/samples_in_lanes.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// A block's values: a row of kLanes samples for every column.
template <class S, int kVecs>
struct LaneRows {
  using A = Accumulate<S>;
  using V = Vec<A>;
  using B = Bundle<V, kVecs>;
  static constexpr int kLanes = kVecs * V::kWidth;

  const Schedule& schedule;
  const LaneBlock b;

  static B load(const A* row) {
    return B::of([&](int i) FASTRNN_LAMBDA { return V::load(row + i * V::kWidth); });
  }
  static void store(B values, A* row) {
    for (int i = 0; i < kVecs; ++i) values.part[i].store(row + i * V::kWidth);
  }
  // True for the first n lanes.
  static typename B::Mask first(int64_t n) {
    alignas(64) A lane[kLanes];
    for (int i = 0; i < kLanes; ++i) lane[i] = A(i);
    return load(lane) < B(A(n));
  }

  // Returns how many lanes run at time t; these are the first ones.
  int64_t active(int64_t t) const { return std::clamp<int64_t>(schedule.rows(t) - b.first_row, 0, b.lanes); }

  // read() copies the first n lanes of a sequence at time t to rows of lanes, the other lanes 0; write() copies back.
  template <class T>
  [[gnu::noinline]] void read(const Sequence<T>& from, int64_t columns, int64_t t, int64_t n, A* out) const {
    if (columns == 1 && from.sample_stride == 1 && !schedule.order) {
      const T* row = from.row(t, b.first_row);
      for (int i = 0; i < kVecs; ++i)
        load_as_vec(row + i * V::kWidth, std::max<int64_t>(0, n - i * V::kWidth)).store(out + i * V::kWidth);
      return;
    }
    read_rows([&](int64_t r) { return from.row(t, schedule.sample(r)); }, from.col_stride, columns, n, out);
  }
  [[gnu::noinline]] void read(Matrix<const S> from, int64_t columns, A* out) const {
    if (!from)
      std::fill_n(out, columns * kLanes, A(0));
    else
      read_rows([&](int64_t r) { return from.row(schedule.sample(r)); }, from.col_stride, columns, b.lanes, out);
  }
  template <class Row>
  void read_rows(Row&& row, int64_t stride, int64_t columns, int64_t n, A* out) const {
    if (n < kLanes) std::fill_n(out, columns * kLanes, A(0));
    for (int64_t lane = 0; lane < n; ++lane) {
      auto* from = row(b.first_row + lane);
      for (int64_t j = 0; j < columns; ++j) out[j * kLanes + lane] = to_accumulate(from[j * stride]);
    }
  }
  template <class T>
  [[gnu::noinline]] void write(const A* from, int64_t columns, const Sequence<T>& to, int64_t t, int64_t n) const {
    write_rows(from, columns, [&](int64_t r) { return to.row(t, schedule.sample(r)); }, to.col_stride, n);
  }
  [[gnu::noinline]] void write(const A* from, int64_t columns, Matrix<S> to) const {
    if (to) write_rows(from, columns, [&](int64_t r) { return to.row(schedule.sample(r)); }, to.col_stride, b.lanes);
  }
  template <class Row>
  void write_rows(const A* from, int64_t columns, Row&& row, int64_t stride, int64_t n) const {
    for (int64_t lane = 0; lane < n; ++lane) {
      auto* to = row(b.first_row + lane);
      for (int64_t j = 0; j < columns; ++j) from_accumulate(from[j * kLanes + lane], to[j * stride]);
    }
  }
  template <class T>
  static A to_accumulate(T x) {
    return Storage<std::remove_const_t<T>>::to(x);
  }
  template <class T>
  static void from_accumulate(A x, T& to) {
    to = Storage<T>::from(x);
  }

  // Writes 1 to lanes whose state is reset before time t, 0 to others. Returns whether there are such lanes.
  [[gnu::noinline]] bool reset_lanes(int64_t t, int64_t n, A* out) const {
    if (!schedule.reset) return false;
    bool any = false;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const bool reset = lane < n && schedule.resets(t, b.first_row + lane);
      out[lane] = A(reset);
      any |= reset;
    }
    return any;
  }
};

template <class Cell, class S>
struct LaneUpdate {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int kGates = Cell::kInputGates;
  static constexpr int kSaved = Cell::kSaved;
  static constexpr bool kHasC = Cell::kCellStates > 0;
  static constexpr int kVecs = lane_vecs(kGates);
  using Rows = LaneRows<S, kVecs>;
  using B = typename Rows::B;

  static void forward(const LaneForward<S>& scan, const LaneBlock& block, A* work) {
    Forward{{scan.schedule, block}, scan}.run(work);
  }
  static void backward(const LaneBackward<S>& scan, const LaneBlock& block, const LaneSums<A>& rows) {
    Backward{{scan.schedule, block}, scan}.run(rows.work, rows.recent, rows.sums);
  }

 private:
  FASTRNN_FN static Extras<B, Cell> extras(const ScanParams<S>& p) {
    Extras<B, Cell> extra;
    for (int k = 0; k < Cell::kNumbers; ++k) extra.numbers[k] = B(A(p.numbers[k]));
    return extra;
  }

  struct Forward : Rows {
    using Rows::kLanes, Rows::schedule, Rows::load, Rows::store, Rows::first, Rows::active, Rows::read, Rows::write,
        Rows::reset_lanes;

    const LaneForward<S>& scan;
    const ScanParams<S>& p = scan.p;
    const int64_t I = scan.I;
    const int64_t H = scan.H;
    const Buffer<A>& w_ih = scan.w_ih;
    const Buffer<A>& w_hh = scan.w_hh;

    void run(A* work) {
      A* const x = work;
      A* h = x + I * kLanes;
      A* h_next = h + H * kLanes;
      A* const c = h_next + H * kLanes;
      A* const saved = c + H * kLanes;
      A* const reset_h = saved + kSaved * H * kLanes;
      A* const reset_c = reset_h + H * kLanes;
      A* const reset = reset_c + H * kLanes;
      read(p.h_0, H, h);
      if (kHasC) read(p.c_0, H, c);
      if (schedule.reset) read(p.reset_h, H, reset_h);
      if (schedule.reset && kHasC) read(p.reset_c, H, reset_c);
      for (int64_t s = 0; s < schedule.T; ++s) {
        const int64_t t = schedule.step(s);
        const int64_t n = active(t);
        if (n == 0) continue;
        if (reset_lanes(t, n, reset)) {
          const auto keep = load(reset) < B(A(1));
          for (int64_t u = 0; u < H; ++u) {
            const int64_t at = u * kLanes;
            store(select(keep, load(h + at), load(reset_h + at)), h + at);
            if (kHasC) store(select(keep, load(c + at), load(reset_c + at)), c + at);
          }
        }
        if (p.x) read(p.x, I, t, n, x);
        for (int64_t u = 0; u < H; ++u) update(u, n, x, h, h_next, c, saved);
        std::swap(h, h_next);
        write(h, H, p.y, t, n);
        if (p.gates) write(saved, kSaved * H, p.gates, t, n);
        if constexpr (kHasC)
          if (p.cells) write(c, H, p.cells, t, n);
      }
      write(h, H, p.h_n);
      if (kHasC) write(c, H, p.c_n);
    }

    // Advances unit u of all samples; those that do not run keep their state.
    FASTRNN_FN void update(int64_t u, int64_t n, const A* x, const A* h, A* h_next, A* c, A* saved_rows) {
      std::array<B, kGates> gx, gh;
      for (int g = 0; g < kGates; ++g) {
        const int64_t row = g * H + u;
        gx[g] = B(scan.b_ih_[row]);
        gh[g] = B(scan.b_hh_[row]);
        for (int64_t k = 0; k < I; ++k) gx[g] = mul_add(B(w_ih[row * I + k]), load(x + k * kLanes), gx[g]);
        for (int64_t k = 0; k < H; ++k) gh[g] = mul_add(B(w_hh[row * H + k]), load(h + k * kLanes), gh[g]);
      }
      const StateOf<Cell, B> before{load(h + u * kLanes), {kHasC ? load(c + u * kLanes) : B(A(0))}};
      StateOf<Cell, B> state = before;
      std::array<B, kSaved> saved;
      forward_of<Cell>(gx, gh, extras(p), state, saved);
      for (int k = 0; k < kSaved; ++k) store(saved[k], saved_rows + (k * H + u) * kLanes);
      if (n < kLanes) {
        const auto runs = first(n);
        state.h = select(runs, state.h, before.h);
        if (kHasC) state.c[0] = select(runs, state.c[0], before.c[0]);
      }
      store(state.h, h_next + u * kLanes);
      if (kHasC) store(state.c[0], c + u * kLanes);
    }
  };

  // Rows of a block's states.
  struct States {
    const A* h;
    const A* c;
  };

  struct Backward : Rows {
    using Rows::kLanes, Rows::schedule, Rows::b, Rows::load, Rows::store, Rows::first, Rows::active, Rows::read,
        Rows::write, Rows::reset_lanes;

    const LaneBackward<S>& scan;
    const ScanParams<S>& p = scan.p;
    const ScanGradients<S>& d = scan.d;
    const int64_t I = scan.I;
    const int64_t H = scan.H;
    const Buffer<A>& w_ih = scan.w_ih;
    const Buffer<A>& w_hh = scan.w_hh;

    void run(A* work, A* recent, A* sums) {
      const auto rows = [&work](int64_t count) {
        A* const out = work;
        work += count * kLanes;
        return out;
      };
      A* const x = rows(I);
      A* const dx = rows(I);
      A* const h_prev = rows(H);
      A* const c_prev = rows(H);
      A* const h_next = rows(H);  // after the step
      A* const c_next = rows(H);
      A* const dh = rows(H);
      A* const dc = rows(H);
      A* const dy = rows(H);
      A* const d_cells = rows(H);
      A* const reset_h = rows(H);
      A* const reset_c = rows(H);
      A* const d_reset_h = rows(H);
      A* const d_reset_c = rows(H);
      A* const saved = rows(kSaved * H);
      A* const d_gx = rows(kGates * H);
      A* const d_gh = rows(kGates * H);
      A* const reset = rows(1);
      read(d.h_n, H, dh);
      if (kHasC) read(d.c_n, H, dc);
      if (schedule.reset) {
        read(p.reset_h, H, reset_h);
        if (kHasC) read(p.reset_c, H, reset_c);
      }
      std::fill_n(d_reset_h, H * kLanes, A(0));
      std::fill_n(d_reset_c, H * kLanes, A(0));
      std::fill_n(recent, scan.sums_size_, A(0));
      for (int64_t s = schedule.T - 1; s >= 0; --s) {
        const int64_t t = schedule.step(s);
        const int64_t n = active(t);
        if (n == 0) continue;
        const bool resets = reset_lanes(t, n, reset);
        const auto keep = resets ? load(reset) < B(A(1)) : typename B::Mask{};
        const auto replace = [&](A* state, const A* by) {
          for (int64_t at = 0; resets && at < H * kLanes; at += kLanes)
            store(select(keep, load(state + at), load(by + at)), state + at);
        };
        // The gradient of a state that was reset belongs to the reset state.
        const auto move_gradient = [&](A* from, A* to) {
          for (int64_t at = 0; resets && at < H * kLanes; at += kLanes) {
            const B incoming = load(from + at);
            store(load(to + at) + select(keep, B(A(0)), incoming), to + at);
            store(select(keep, incoming, B(A(0))), from + at);
          }
        };
        read_previous(p.y, p.h_0, t, n, h_prev);
        replace(h_prev, reset_h);
        if constexpr (kHasC) {
          read_previous(p.cells, p.c_0, t, n, c_prev);
          replace(c_prev, reset_c);
          read(p.cells, H, t, n, c_next);
        }
        if constexpr (Cell::kReadsNextH) read(p.y, H, t, n, h_next);
        if constexpr (kSaved > 0) read(p.gates, kSaved * H, t, n, saved);
        if (d.y)
          read(d.y, H, t, n, dy);
        else
          std::fill_n(dy, H * kLanes, A(0));
        if (kHasC && d.cells) {
          read(d.cells, H, t, n, d_cells);
          for (int64_t at = 0; at < H * kLanes; at += kLanes) store(load(dc + at) + load(d_cells + at), dc + at);
        }
        for (int64_t u = 0; u < H; ++u) update(u, n, {h_prev, c_prev}, {h_next, c_next}, dy, saved, dh, dc, d_gx, d_gh);
        for (int64_t u = 0; u < H; ++u) {
          const B sum = product(d_gh, w_hh, u, H);
          store(sum + load(dh + u * kLanes), dh + u * kLanes);
        }
        move_gradient(dh, d_reset_h);
        if (kHasC) move_gradient(dc, d_reset_c);
        if (d.x) {
          for (int64_t k = 0; k < I; ++k) store(product(d_gx, w_ih, k, I), dx + k * kLanes);
          write(dx, I, d.x, t, n);
        }
        if (!scan.any_weight) continue;
        if (p.x) read(p.x, I, t, n, x);
        for (int64_t j = 0; j < kGates * H; ++j) {
          A* const row = recent + j * scan.terms_ * V::kWidth;
          accumulate(load(d_gx + j * kLanes), x, I, row);
          accumulate(load(d_gh + j * kLanes), h_prev, H, row + (I + 1) * V::kWidth);
        }
        if (s % scan.kStepsOfASum == 0) {
          for (int64_t i = 0; i < scan.sums_size_; i += V::kWidth)
            (V::load(sums + i) + V::load(recent + i)).store(sums + i);
          std::fill_n(recent, scan.sums_size_, A(0));
        }
      }
      for (int64_t i = 0; i < scan.sums_size_; i += V::kWidth)
        (V::load(sums + i) + V::load(recent + i)).store(sums + i);
      write(dh, H, d.h_0);
      if (kHasC) write(dc, H, d.c_0);
      write(d_reset_h, H, d.reset_h);
      if (kHasC) write(d_reset_c, H, d.reset_c);
    }

    // Reads the state before time t, 0 in lanes that do not run.
    template <class E>
    [[gnu::noinline]] void read_previous(const Sequence<E>& sequence, Matrix<const S> initial, int64_t t, int64_t n,
                                         A* out) const {
      const int64_t before = schedule.previous(t);
      const int64_t ran = 0 <= before && before < schedule.T ? std::min(n, active(before)) : 0;
      if (ran > 0) read(sequence, H, before, ran, out);
      if (ran == n) return;
      if (ran == 0) std::fill_n(out, H * kLanes, A(0));
      for (int64_t lane = ran; initial && lane < n; ++lane) {
        const S* from = initial.row(schedule.sample(b.first_row + lane));
        for (int64_t u = 0; u < H; ++u) out[u * kLanes + lane] = Storage<S>::to(from[u * initial.col_stride]);
      }
    }

    // Runs the cell's backward for unit u of all samples; those that do not run keep their gradients and give none.
    FASTRNN_FN void update(int64_t u, int64_t n, States before, States after, const A* dy, const A* saved_rows, A* dh,
                           A* dc, A* d_gx, A* d_gh) {
      const int64_t at = u * kLanes;
      const B none(A(0));
      const StateOf<Cell, B> prev{load(before.h + at), {kHasC ? load(before.c + at) : none}};
      const StateOf<Cell, B> next{Cell::kReadsNextH ? load(after.h + at) : none, {kHasC ? load(after.c + at) : none}};
      std::array<B, kSaved> saved;
      for (int k = 0; k < kSaved; ++k) saved[k] = load(saved_rows + k * H * kLanes + at);
      const StateOf<Cell, B> incoming{load(dh + at), {kHasC ? load(dc + at) : none}};
      StateOf<Cell, B> d_state{incoming.h + load(dy + at), incoming.c};
      std::array<B, kGates> gx, gh;
      ExtraGradients<B, Cell> none_of_extras;
      backward_of<Cell>(saved, extras(p), prev, next, d_state, gx, gh, none_of_extras);
      if (n < kLanes) {
        const auto runs = first(n);
        d_state.h = select(runs, d_state.h, incoming.h);
        if (kHasC) d_state.c[0] = select(runs, d_state.c[0], incoming.c[0]);
        for (int g = 0; g < kGates; ++g) {
          gx[g] = select(runs, gx[g], none);
          gh[g] = select(runs, gh[g], none);
        }
      }
      store(d_state.h, dh + at);
      if (kHasC) store(d_state.c[0], dc + at);
      for (int g = 0; g < kGates; ++g) {
        store(gx[g], d_gx + g * H * kLanes + at);
        store(gh[g], d_gh + g * H * kLanes + at);
      }
    }

    // Returns the sum over the gate rows j of gates[j] * weight[j][column].
    FASTRNN_FN B product(const A* gates, const Buffer<A>& weight, int64_t column, int64_t columns) const {
      B sum(A(0));
      for (int64_t j = 0; j < kGates * H; ++j)
        sum = mul_add(load(gates + j * kLanes), B(weight[j * columns + column]), sum);
      return sum;
    }

    // Adds gate * rows[k] for every row, and gate itself, to vectors of sums.
    FASTRNN_FN static void accumulate(B gate, const A* rows, int64_t count, A* sums) {
      for (int64_t k = 0; k < count; ++k) {
        const B right = load(rows + k * kLanes);
        V sum = V::load(sums + k * V::kWidth);
        for (int i = 0; i < kVecs; ++i) sum = mul_add(gate.part[i], right.part[i], sum);
        sum.store(sums + k * V::kWidth);
      }
      for (int step = kVecs / 2; step > 0; step /= 2)  // pairs first: the long sum rounds once a step
        for (int i = 0; i < step; ++i) gate.part[i] = gate.part[i] + gate.part[i + step];
      (V::load(sums + count * V::kWidth) + gate.part[0]).store(sums + count * V::kWidth);
    }
  };
};

}  // namespace fastrnn::FASTRNN_ISA
