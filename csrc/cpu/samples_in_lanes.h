// The sequence kernels for few hidden units: the lanes of a vector are samples instead of units.
//
// With 5 units, a vector of 16 would be two thirds empty. A block of samples walks all its steps on its own, with its
// state in the first-level cache; nothing is packed. Every sum takes its terms in the order of the other kernels, so a
// sample's bits do not depend on which of them ran.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>

#include "cells/cell.h"
#include "cpu/gemm.h"
#include "cpu/isa_scans.h"
#include "cpu/micro_kernel.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

template <class Cell, class S>
struct LaneScan {
  using A = Accumulate<S>;
  using V = Vec<A>;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kSaved = Cell::kSaved;
  static constexpr bool kHasC = Cell::kCellStates > 0;
  static constexpr int kVecs = kGates == 1 ? 4 : 2;  // enough to hide their latency, and they fit the registers
  static constexpr int kLanes = kVecs * V::kWidth;
  using B = Bundle<V, kVecs>;

  // These kernels suit units that would leave a third of the lanes empty. Sums are then short enough to need no
  // restart, and a block's operands stay in cache. Returns why they do not suit, or nothing.
  static std::string_view unsuited_units(const ScanParams<S>& p) {
    const int64_t H = p.hidden_size;
    if (3 * H > 2 * round_up_to_vec<A>(H)) return "hidden units fill the lanes of a vector well";
    if (p.input_size > 32) return "input_size is more than 32";
    if (kGates * H > kSumDepth<A>) return "there are too many gates for one sum";
    if (p.projected()) return "a projection mixes the units of a sample";
    return {};
  }
  static std::string_view unsuited(const ScanParams<S>& p) {
    if (const std::string_view why = unsuited_units(p); !why.empty()) return why;
    return p.schedule.N < V::kWidth ? "there are fewer samples than lanes" : "";
  }

  const ScanParams<S>& p;
  const Team& team;
  const Schedule& schedule = p.schedule;
  const int64_t I = p.input_size;
  const int64_t H = p.hidden_size;
  const int64_t N = schedule.N;
  const int64_t blocks = (N + kLanes - 1) / kLanes;
  Buffer<A> w_ih = copy(p.weights.ih, I);  // [kGates * H, I]
  Buffer<A> w_hh = copy(p.weights.hh, H);  // [kGates * H, H]

  Buffer<A> copy(Matrix<const S> weight, int64_t columns) const {
    Buffer<A> out(kGates * H * columns);
    for (int64_t i = 0; i < kGates * H; ++i) gather(weight.row(i), weight.col_stride, out.get() + i * columns, columns);
    return out;
  }

  // Values of a block: a row of kLanes samples for every column.
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

  // Samples [first_row, first_row + lanes) of the batch.
  struct Block {
    int64_t first_row;
    int64_t lanes;
  };
  Block block(int64_t index) const { return {index * kLanes, std::min<int64_t>(kLanes, N - index * kLanes)}; }
  // Returns how many lanes run at time t; these are the first ones.
  int64_t active(Block b, int64_t t) const { return std::clamp<int64_t>(schedule.rows(t) - b.first_row, 0, b.lanes); }

  // read() copies the first n lanes of a sequence at time t to rows of lanes, the other lanes 0; write() copies back.
  template <class T>
  [[gnu::noinline]] void read(const Sequence<T>& from, int64_t columns, int64_t t, Block b, int64_t n, A* out) const {
    if (columns == 1 && from.sample_stride == 1 && !schedule.order) {
      const T* row = from.row(t, b.first_row);
      for (int i = 0; i < kVecs; ++i)
        load_as_vec(row + i * V::kWidth, std::max<int64_t>(0, n - i * V::kWidth)).store(out + i * V::kWidth);
      return;
    }
    read_rows([&](int64_t r) { return from.row(t, schedule.sample(r)); }, from.col_stride, columns, b, n, out);
  }
  [[gnu::noinline]] void read(Matrix<const S> from, int64_t columns, Block b, A* out) const {
    if (!from)
      std::fill_n(out, columns * kLanes, A(0));
    else
      read_rows([&](int64_t r) { return from.row(schedule.sample(r)); }, from.col_stride, columns, b, b.lanes, out);
  }
  template <class Row>
  static void read_rows(Row&& row, int64_t stride, int64_t columns, Block b, int64_t n, A* out) {
    if (n < kLanes) std::fill_n(out, columns * kLanes, A(0));
    for (int64_t lane = 0; lane < n; ++lane) {
      auto* from = row(b.first_row + lane);
      for (int64_t j = 0; j < columns; ++j) out[j * kLanes + lane] = to_accumulate(from[j * stride]);
    }
  }
  template <class T>
  [[gnu::noinline]] void write(const A* from, int64_t columns, const Sequence<T>& to, int64_t t, Block b,
                               int64_t n) const {
    write_rows(from, columns, [&](int64_t r) { return to.row(t, schedule.sample(r)); }, to.col_stride, b, n);
  }
  [[gnu::noinline]] void write(const A* from, int64_t columns, Matrix<S> to, Block b) const {
    if (to) write_rows(from, columns, [&](int64_t r) { return to.row(schedule.sample(r)); }, to.col_stride, b, b.lanes);
  }
  template <class Row>
  static void write_rows(const A* from, int64_t columns, Row&& row, int64_t stride, Block b, int64_t n) {
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
  [[gnu::noinline]] bool reset_lanes(Block b, int64_t t, int64_t n, A* out) const {
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
class LaneForward : LaneScan<Cell, S> {
  using Base = LaneScan<Cell, S>;
  using typename Base::A;
  using typename Base::B;
  using typename Base::Block;
  using Base::blocks, Base::H, Base::I, Base::kGates, Base::kHasC, Base::kLanes, Base::kSaved, Base::p, Base::schedule,
      Base::team, Base::w_hh, Base::w_ih;

  Buffer<A> b_ih_ = bias(p.weights.bias_ih);
  Buffer<A> b_hh_ = bias(p.weights.bias_hh);
  // Rows of lanes, a set for every thread.
  const int64_t rows_ = I + (5 + kSaved) * H + 1;
  Buffer<A> work_ = Buffer<A>(team.threads() * rows_ * kLanes);

 public:
  LaneForward(const ScanParams<S>& params, const Team& threads) : Base{params, threads} {}

  void run() {
    team.run([&](const Team::Member& member) {
      const Range range = member.share(blocks);
      for (int64_t i = range.begin; i < range.end; ++i)
        run_block(this->block(i), work_.get() + member.index * rows_ * kLanes);
    });
  }

 private:
  Buffer<A> bias(Vector<const S> from) const {
    Buffer<A> out(kGates * H);
    std::fill_n(out.get(), kGates * H, A(0));
    if (from) gather(from.data, from.stride, out.get(), kGates * H);
    return out;
  }

  void run_block(Block b, A* work) {
    A* const x = work;
    A* h = x + I * kLanes;
    A* h_next = h + H * kLanes;
    A* const c = h_next + H * kLanes;
    A* const saved = c + H * kLanes;
    A* const reset_h = saved + kSaved * H * kLanes;
    A* const reset_c = reset_h + H * kLanes;
    A* const reset = reset_c + H * kLanes;
    this->read(p.h_0, H, b, h);
    if (kHasC) this->read(p.c_0, H, b, c);
    if (schedule.reset) this->read(p.reset_h, H, b, reset_h);
    if (schedule.reset && kHasC) this->read(p.reset_c, H, b, reset_c);
    for (int64_t s = 0; s < schedule.T; ++s) {
      const int64_t t = schedule.step(s);
      const int64_t n = this->active(b, t);
      if (n == 0) continue;
      if (this->reset_lanes(b, t, n, reset)) {
        const auto keep = Base::load(reset) < B(A(1));
        for (int64_t u = 0; u < H; ++u) {
          const int64_t at = u * kLanes;
          Base::store(select(keep, Base::load(h + at), Base::load(reset_h + at)), h + at);
          if (kHasC) Base::store(select(keep, Base::load(c + at), Base::load(reset_c + at)), c + at);
        }
      }
      if (p.x) this->read(p.x, I, t, b, n, x);
      for (int64_t u = 0; u < H; ++u) update(u, n, x, h, h_next, c, saved);
      std::swap(h, h_next);
      this->write(h, H, p.y, t, b, n);
      if (p.gates) this->write(saved, kSaved * H, p.gates, t, b, n);
      if constexpr (kHasC)
        if (p.cells) this->write(c, H, p.cells, t, b, n);
    }
    this->write(h, H, p.h_n, b);
    if (kHasC) this->write(c, H, p.c_n, b);
  }

  // Advances unit u of all samples; those that do not run keep their state.
  FASTRNN_FN void update(int64_t u, int64_t n, const A* x, const A* h, A* h_next, A* c, A* saved_rows) {
    std::array<B, kGates> gx, gh;
    for (int g = 0; g < kGates; ++g) {
      const int64_t row = g * H + u;
      gx[g] = B(b_ih_[row]);
      gh[g] = B(b_hh_[row]);
      for (int64_t k = 0; k < I; ++k) gx[g] = mul_add(B(w_ih[row * I + k]), Base::load(x + k * kLanes), gx[g]);
      for (int64_t k = 0; k < H; ++k) gh[g] = mul_add(B(w_hh[row * H + k]), Base::load(h + k * kLanes), gh[g]);
    }
    const State<B> before{Base::load(h + u * kLanes), {kHasC ? Base::load(c + u * kLanes) : B(A(0))}};
    State<B> state = before;
    std::array<B, kSaved> saved;
    Cell::forward(gx, gh, state, saved);
    for (int k = 0; k < kSaved; ++k) Base::store(saved[k], saved_rows + (k * H + u) * kLanes);
    if (n < kLanes) {
      const auto runs = Base::first(n);
      state.h = select(runs, state.h, before.h);
      if (kHasC) state.c[0] = select(runs, state.c[0], before.c[0]);
    }
    Base::store(state.h, h_next + u * kLanes);
    if (kHasC) Base::store(state.c[0], c + u * kLanes);
  }
};

template <class Cell, class S>
class LaneBackward : LaneScan<Cell, S> {
  using Base = LaneScan<Cell, S>;
  using typename Base::A;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::V;
  using Base::blocks, Base::H, Base::I, Base::kGates, Base::kHasC, Base::kLanes, Base::kSaved, Base::kVecs, Base::N,
      Base::p, Base::schedule, Base::team, Base::w_hh, Base::w_ih;
  static constexpr int64_t kSlots = 64;        // sums over samples: slot i takes blocks i, i + kSlots, ...
  static constexpr int64_t kStepsOfASum = 32;  // summed in recent_ before they are added to the slot's sums

  const ScanGradients<S>& d;
  const bool any_weight = d.weights.any();
  // Rows of lanes, a set for every thread.
  const int64_t rows_ = 2 * I + (11 + kSaved + 2 * kGates) * H + 1;
  Buffer<A> work_ = Buffer<A>(team.threads() * rows_ * kLanes);
  // Sums of the weight gradients, a vector of lanes for each: for gate row j, d gx times x and 1, d gh times h and 1.
  const int64_t terms_ = I + 1 + H + 1;
  const int64_t sums_size_ = any_weight ? kGates * H * terms_ * V::kWidth : 0;
  Buffer<A> recent_ = Buffer<A>(team.threads() * sums_size_);
  Buffer<A> slot_sums_ = Buffer<A>(std::min(kSlots, blocks) * sums_size_);

 public:
  LaneBackward(const ScanParams<S>& params, const ScanGradients<S>& gradients, const Team& threads)
      : Base{params, threads}, d(gradients) {}

  void run() {
    const int64_t slots = std::min(kSlots, blocks);
    team.run([&](const Team::Member& member) {
      const Range range = member.share(slots);
      A* const work = work_.get() + member.index * rows_ * kLanes;
      A* const recent = recent_.get() + member.index * sums_size_;
      for (int64_t slot = range.begin; slot < range.end; ++slot) {
        A* const sums = slot_sums_.get() + slot * sums_size_;
        std::fill_n(sums, sums_size_, A(0));
        for (int64_t i = slot; i < blocks; i += kSlots) run_block(this->block(i), work, recent, sums);
      }
      member.barrier();
      if (any_weight) store_weights(member.share(kGates * H), slots);
    });
  }

 private:
  void run_block(Block b, A* work, A* recent, A* sums) {
    const auto rows = [&work](int64_t count) {
      A* const out = work;
      work += count * kLanes;
      return out;
    };
    A* const x = rows(I);
    A* const dx = rows(I);
    A* const h_prev = rows(H);
    A* const c_prev = rows(H);
    A* const next = rows(H);  // h or c after the step, whichever the cell reads
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
    this->read(d.h_n, H, b, dh);
    if (kHasC) this->read(d.c_n, H, b, dc);
    if (schedule.reset) {
      this->read(p.reset_h, H, b, reset_h);
      if (kHasC) this->read(p.reset_c, H, b, reset_c);
    }
    std::fill_n(d_reset_h, H * kLanes, A(0));
    std::fill_n(d_reset_c, H * kLanes, A(0));
    std::fill_n(recent, sums_size_, A(0));
    for (int64_t s = schedule.T - 1; s >= 0; --s) {
      const int64_t t = schedule.step(s);
      const int64_t n = this->active(b, t);
      if (n == 0) continue;
      const bool resets = this->reset_lanes(b, t, n, reset);
      const auto keep = resets ? Base::load(reset) < B(A(1)) : typename B::Mask{};
      const auto replace = [&](A* state, const A* by) {
        for (int64_t at = 0; resets && at < H * kLanes; at += kLanes)
          Base::store(select(keep, Base::load(state + at), Base::load(by + at)), state + at);
      };
      // The gradient of a state that was reset belongs to the reset state.
      const auto move_gradient = [&](A* from, A* to) {
        for (int64_t at = 0; resets && at < H * kLanes; at += kLanes) {
          const B incoming = Base::load(from + at);
          Base::store(Base::load(to + at) + select(keep, B(A(0)), incoming), to + at);
          Base::store(select(keep, incoming, B(A(0))), from + at);
        }
      };
      read_previous(p.y, p.h_0, t, b, n, h_prev);
      replace(h_prev, reset_h);
      if constexpr (kHasC) {
        read_previous(p.cells, p.c_0, t, b, n, c_prev);
        replace(c_prev, reset_c);
        this->read(p.cells, H, t, b, n, next);
      } else if constexpr (Cell::kReadsNextH) {
        this->read(p.y, H, t, b, n, next);
      }
      if constexpr (kSaved > 0) this->read(p.gates, kSaved * H, t, b, n, saved);
      if (d.y)
        this->read(d.y, H, t, b, n, dy);
      else
        std::fill_n(dy, H * kLanes, A(0));
      if (kHasC && d.cells) {
        this->read(d.cells, H, t, b, n, d_cells);
        for (int64_t at = 0; at < H * kLanes; at += kLanes)
          Base::store(Base::load(dc + at) + Base::load(d_cells + at), dc + at);
      }
      for (int64_t u = 0; u < H; ++u) update(u, n, h_prev, c_prev, next, dy, saved, dh, dc, d_gx, d_gh);
      for (int64_t u = 0; u < H; ++u) {
        const B sum = product(d_gh, w_hh, u, H);
        Base::store(sum + Base::load(dh + u * kLanes), dh + u * kLanes);
      }
      move_gradient(dh, d_reset_h);
      if (kHasC) move_gradient(dc, d_reset_c);
      if (d.x) {
        for (int64_t k = 0; k < I; ++k) Base::store(product(d_gx, w_ih, k, I), dx + k * kLanes);
        this->write(dx, I, d.x, t, b, n);
      }
      if (!any_weight) continue;
      if (p.x) this->read(p.x, I, t, b, n, x);
      for (int64_t j = 0; j < kGates * H; ++j) {
        A* const row = recent + j * terms_ * V::kWidth;
        accumulate(Base::load(d_gx + j * kLanes), x, I, row);
        accumulate(Base::load(d_gh + j * kLanes), h_prev, H, row + (I + 1) * V::kWidth);
      }
      if (s % kStepsOfASum == 0) {
        for (int64_t i = 0; i < sums_size_; i += V::kWidth) (V::load(sums + i) + V::load(recent + i)).store(sums + i);
        std::fill_n(recent, sums_size_, A(0));
      }
    }
    for (int64_t i = 0; i < sums_size_; i += V::kWidth) (V::load(sums + i) + V::load(recent + i)).store(sums + i);
    this->write(dh, H, d.h_0, b);
    if (kHasC) this->write(dc, H, d.c_0, b);
    this->write(d_reset_h, H, d.reset_h, b);
    if (kHasC) this->write(d_reset_c, H, d.reset_c, b);
  }

  // Reads the state before time t, 0 in lanes that do not run.
  template <class E>
  [[gnu::noinline]] void read_previous(const Sequence<E>& sequence, Matrix<const S> initial, int64_t t, Block b,
                                       int64_t n, A* out) const {
    const int64_t before = schedule.previous(t);
    const int64_t ran = 0 <= before && before < schedule.T ? std::min(n, this->active(b, before)) : 0;
    if (ran > 0) this->read(sequence, H, before, b, ran, out);
    if (ran == n) return;
    if (ran == 0) std::fill_n(out, H * kLanes, A(0));
    for (int64_t lane = ran; initial && lane < n; ++lane) {
      const S* from = initial.row(schedule.sample(b.first_row + lane));
      for (int64_t u = 0; u < H; ++u) out[u * kLanes + lane] = Storage<S>::to(from[u * initial.col_stride]);
    }
  }

  // Runs the cell's backward for unit u of all samples; those that do not run keep their gradients and give none.
  FASTRNN_FN void update(int64_t u, int64_t n, const A* h_prev, const A* c_prev, const A* next_rows, const A* dy,
                         const A* saved_rows, A* dh, A* dc, A* d_gx, A* d_gh) {
    const int64_t at = u * kLanes;
    const State<B> prev{Base::load(h_prev + at), {kHasC ? Base::load(c_prev + at) : B(A(0))}};
    const B after = kHasC || Cell::kReadsNextH ? Base::load(next_rows + at) : B(A(0));
    const State<B> next{after, {after}};
    std::array<B, kSaved> saved;
    for (int k = 0; k < kSaved; ++k) saved[k] = Base::load(saved_rows + k * H * kLanes + at);
    const State<B> incoming{Base::load(dh + at), {kHasC ? Base::load(dc + at) : B(A(0))}};
    State<B> d_state{incoming.h + Base::load(dy + at), incoming.c};
    std::array<B, kGates> gx, gh;
    Cell::backward(saved, prev, next, d_state, gx, gh);
    if (n < kLanes) {
      const auto runs = Base::first(n);
      d_state.h = select(runs, d_state.h, incoming.h);
      if (kHasC) d_state.c[0] = select(runs, d_state.c[0], incoming.c[0]);
      for (int g = 0; g < kGates; ++g) {
        gx[g] = select(runs, gx[g], B(A(0)));
        gh[g] = select(runs, gh[g], B(A(0)));
      }
    }
    Base::store(d_state.h, dh + at);
    if (kHasC) Base::store(d_state.c[0], dc + at);
    for (int g = 0; g < kGates; ++g) {
      Base::store(gx[g], d_gx + g * H * kLanes + at);
      Base::store(gh[g], d_gh + g * H * kLanes + at);
    }
  }

  // Returns the sum over the gate rows j of gates[j] * weight[j][column].
  FASTRNN_FN B product(const A* gates, const Buffer<A>& weight, int64_t column, int64_t columns) const {
    B sum(A(0));
    for (int64_t j = 0; j < kGates * H; ++j)
      sum = mul_add(Base::load(gates + j * kLanes), B(weight[j * columns + column]), sum);
    return sum;
  }

  // Adds gate * rows[k] for every row, and gate itself, to vectors of sums.
  FASTRNN_FN static void accumulate(B gate, const A* rows, int64_t count, A* sums) {
    for (int64_t k = 0; k < count; ++k) {
      const B right = Base::load(rows + k * kLanes);
      V sum = V::load(sums + k * V::kWidth);
      for (int i = 0; i < kVecs; ++i) sum = mul_add(gate.part[i], right.part[i], sum);
      sum.store(sums + k * V::kWidth);
    }
    for (int step = kVecs / 2; step > 0; step /= 2)  // pairs first: the long sum rounds once a step
      for (int i = 0; i < step; ++i) gate.part[i] = gate.part[i] + gate.part[i + step];
    (V::load(sums + count * V::kWidth) + gate.part[0]).store(sums + count * V::kWidth);
  }

  void store_weights(Range gates, int64_t slots) {
    for (int64_t j = gates.begin; j < gates.end; ++j) {
      const auto total = [&](int64_t term) {
        CompensatedSum<V> sum;
        for (int64_t slot = 0; slot < slots; ++slot)
          sum.add(V::load(slot_sums_.get() + slot * sums_size_ + (j * terms_ + term) * V::kWidth));
        alignas(64) A lanes[V::kWidth];
        sum.value.store(lanes);
        for (int width = V::kWidth / 2; width > 0; width /= 2)
          for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        return Storage<S>::from(lanes[0]);
      };
      for (int64_t k = 0; d.weights.ih && k < I; ++k) d.weights.ih(j, k) = total(k);
      if (d.weights.bias_ih) d.weights.bias_ih[j] = total(I);
      for (int64_t k = 0; d.weights.hh && k < H; ++k) d.weights.hh(j, k) = total(I + 1 + k);
      if (d.weights.bias_hh) d.weights.bias_hh[j] = total(I + 1 + H);
    }
  }
};

}  // namespace fastrnn::FASTRNN_ISA
