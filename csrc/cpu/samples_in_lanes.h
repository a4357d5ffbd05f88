// The sequence kernels for few hidden units: the lanes of a vector are samples instead of units.
//
// With 5 units, a vector of 16 would be two thirds empty. A block of samples walks all its steps on its own, with its
// state in the first-level cache; nothing is packed. Every sum takes its terms in the order of the other kernels, so a
// sample's bits do not depend on which of them ran. The walk of a block is the cell's side (cpu/lane_update.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "cells/cell.h"
#include "cpu/cell_kernels.h"
#include "cpu/gemm.h"
#include "cpu/isa_scans.h"
#include "cpu/micro_kernel.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// So many vectors of samples go side by side: enough to hide their latency, and they fit the registers.
constexpr int lane_vecs(int gates) { return gates == 1 ? 4 : 2; }

template <class S>
struct LaneScan {
  using A = Accumulate<S>;
  using V = Vec<A>;

  // Tells why these kernels do not suit a layer, or nothing. They suit units that would leave half of the lanes empty,
  // and where inputs are so few that a step is short, a third. Sums are then short enough to need no restart, and a
  // block's operands stay in cache.
  static std::string_view unsuited_units(const CellTraits& cell, const ScanParams<S>& p) {
    const int64_t H = p.hidden_size;
    if (kDual<S>) return "derivatives of gradients all take one way";
    if (!cell.suits_lanes()) return "the cell has vectors, extra inputs, several states or products of one kind";
    if (3 * H > 2 * round_up_to_vec<A>(H)) return "hidden units fill the lanes of a vector well";
    if (p.input_size > 32) return "input_size is more than 32";
    if (2 * H > round_up_to_vec<A>(H) && p.input_size > 8)
      return "hidden units fill more than half of a vector's lanes, and input_size is more than 8";
    if (cell.input_gates * H > kSumDepth<A>) return "there are too many gates for one sum";
    if (p.projected()) return "a projection mixes the units of a sample";
    return {};
  }
  static std::string_view unsuited(const CellTraits& cell, const ScanParams<S>& p) {
    if (const std::string_view why = unsuited_units(cell, p); !why.empty()) return why;
    return p.schedule.N < V::kWidth ? "there are fewer samples than lanes" : "";
  }

  const ScanParams<S>& p;
  const CellKernels<S>& kernels;
  const Team& team;
  const Schedule& schedule = p.schedule;
  const int64_t I = p.input_size;
  const int64_t H = p.hidden_size;
  const int64_t N = schedule.N;
  const int64_t gates = kernels.cell.input_gates;
  const int64_t saved = kernels.cell.saved;
  const int64_t lanes = lane_vecs(kernels.cell.input_gates) * V::kWidth;
  const int64_t blocks = (N + lanes - 1) / lanes;
  Buffer<A> w_ih = copy(p.weights.ih, I);  // [gates * H, I]
  Buffer<A> w_hh = copy(p.weights.hh, H);  // [gates * H, H]

  Buffer<A> copy(Matrix<const S> weight, int64_t columns) const {
    Buffer<A> out(gates * H * columns);
    for (int64_t i = 0; i < gates * H; ++i) gather(weight.row(i), weight.col_stride, out.get() + i * columns, columns);
    return out;
  }
  LaneBlock block(int64_t index) const { return {index * lanes, std::min(lanes, N - index * lanes)}; }
};

template <class S>
class LaneForward : LaneScan<S> {
  using Base = LaneScan<S>;
  using typename Base::A;
  using Base::blocks, Base::gates, Base::H, Base::I, Base::kernels, Base::lanes, Base::p, Base::saved, Base::team;
  template <class Cell, class T>
  friend struct LaneUpdate;

  Buffer<A> b_ih_ = bias(p.weights.bias_ih);
  Buffer<A> b_hh_ = bias(p.weights.bias_hh);
  // Rows of lanes, a set for every thread.
  const int64_t rows_ = I + (5 + saved) * H + 1;
  Buffer<A> work_ = Buffer<A>(team.threads() * rows_ * lanes);

 public:
  LaneForward(const ScanParams<S>& params, const CellKernels<S>& of_cell, const Team& threads)
      : Base{params, of_cell, threads} {}

  void run() {
    team.run([&](const Team::Member& member) {
      const Range range = member.share(blocks);
      for (int64_t i = range.begin; i < range.end; ++i)
        kernels.forward_in_lanes(*this, this->block(i), work_.get() + member.index * rows_ * lanes);
    });
  }

 private:
  Buffer<A> bias(Vector<const S> from) const {
    Buffer<A> out(gates * H);
    std::fill_n(out.get(), gates * H, A(0));
    if (from) gather(from.data, from.stride, out.get(), gates * H);
    return out;
  }
};

template <class S>
class LaneBackward : LaneScan<S> {
  using Base = LaneScan<S>;
  using typename Base::A;
  using typename Base::V;
  using Base::blocks, Base::gates, Base::H, Base::I, Base::kernels, Base::lanes, Base::p, Base::saved, Base::team;
  template <class Cell, class T>
  friend struct LaneUpdate;
  static constexpr int64_t kSlots = 64;        // sums over samples: slot i takes blocks i, i + kSlots, ...
  static constexpr int64_t kStepsOfASum = 32;  // summed in `recent` before they are added to the slot's sums

  const ScanGradients<S>& d;
  const bool any_weight = d.weights.any();
  // Rows of lanes, a set for every thread.
  const int64_t rows_ = 2 * I + (12 + saved + 2 * gates) * H + 1;
  Buffer<A> work_ = Buffer<A>(team.threads() * rows_ * lanes);
  // Sums of the weight gradients, a vector of lanes for each: for gate row j, d gx times x and 1, d gh times h and 1.
  const int64_t terms_ = I + 1 + H + 1;
  const int64_t sums_size_ = any_weight ? gates * H * terms_ * V::kWidth : 0;
  Buffer<A> recent_ = Buffer<A>(team.threads() * sums_size_);
  Buffer<A> slot_sums_ = Buffer<A>(std::min(kSlots, blocks) * sums_size_);

 public:
  LaneBackward(const ScanParams<S>& params, const ScanGradients<S>& gradients, const CellKernels<S>& of_cell,
               const Team& threads)
      : Base{params, of_cell, threads}, d(gradients) {}

  void run() {
    const int64_t slots = std::min(kSlots, blocks);
    team.run([&](const Team::Member& member) {
      const Range range = member.share(slots);
      A* const work = work_.get() + member.index * rows_ * lanes;
      A* const recent = recent_.get() + member.index * sums_size_;
      for (int64_t slot = range.begin; slot < range.end; ++slot) {
        A* const sums = slot_sums_.get() + slot * sums_size_;
        std::fill_n(sums, sums_size_, A(0));
        for (int64_t i = slot; i < blocks; i += kSlots)
          kernels.backward_in_lanes(*this, this->block(i), {work, recent, sums});
      }
      member.barrier();
      if (any_weight) store_weights(member.share(gates * H), slots);
    });
  }

 private:
  void store_weights(Range rows, int64_t slots) {
    for (int64_t j = rows.begin; j < rows.end; ++j) {
      const auto total = [&](int64_t term) {
        CompensatedSum<V> sum;
        for (int64_t slot = 0; slot < slots; ++slot)
          sum.add(V::load(slot_sums_.get() + slot * sums_size_ + (j * terms_ + term) * V::kWidth));
        alignas(64) A lanes[V::kWidth];
        sum.value.store(lanes);
        for (int width = V::kWidth / 2; width > 0; width /= 2)
          for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
        return lanes[0];
      };
      const auto store = [&](S& to, int64_t term) {
        to = Storage<S>::from(total(term) + (d.adds_to_weights ? Storage<S>::to(to) : A(0)));
      };
      for (int64_t k = 0; d.weights.ih && k < I; ++k) store(d.weights.ih(j, k), k);
      if (d.weights.bias_ih) store(d.weights.bias_ih[j], I);
      for (int64_t k = 0; d.weights.hh && k < H; ++k) store(d.weights.hh(j, k), I + 1 + k);
      if (d.weights.bias_hh) store(d.weights.bias_hh[j], I + 1 + H);
    }
  }
};

}  // namespace fastrnn::FASTRNN_ISA
