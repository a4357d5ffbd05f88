// A cell's side of the seam (cpu/cell_kernels.h): its step over rows and vectors of units, forward and backward.
#pragma once

#include <array>
#include <cstdint>

#include "cells/cell.h"
#include "cpu/backward_scan.h"
#include "cpu/cell_kernels.h"
#include "cpu/forward_scan.h"

namespace fastrnn::FASTRNN_ISA {

// Calls f.template operator()<n>(), n from 1 to kMost.
template <int kMost, class F>
FASTRNN_FN void with_constant(int64_t n, F&& f) {
  if constexpr (kMost > 1)
    if (n != kMost) return with_constant<kMost - 1>(n, f);
  f.template operator()<kMost>();
}

template <class Cell, class S>
struct CellUpdate {
  using A = Accumulate<S>;
  using E = Operand<S>;
  using V = Vec<A>;
  static_assert(CellOver<Cell, V>);
  static constexpr int kGates = Cell::kGates;
  static constexpr int kUnitVecs = kMaxVecs / kGates;  // of a panel, at most
  static_assert(kMostGates <= kMaxVecs);
  static constexpr bool kHasC = Cell::kHasCellState;
  static constexpr bool kKeepsSums = kPaired<E> && Cell::kReadsPreviousH;

  // As many rows or vectors lie side by side as hide their latency and fit the registers: two rows, two panels of a
  // single row, or the vectors of a panel.
  static void forward(ForwardScan<S>& scan, const ForwardRows<S>& rows) {
    const int64_t gx_row = scan.gx_row_;
    const A* const gx_rows = scan.gx_.get() + (rows.chunk_row + rows.first) * gx_row;
    const A* gh = rows.gh;
    int64_t panel = rows.panels.begin;
    if constexpr (kUnitVecs == 1) {
      constexpr int64_t kWidth = kGates * V::kWidth;
      if (rows.count == 1)
        for (; panel + 2 <= rows.panels.end; panel += 2, gh += 2 * kWidth)
          forward<1, 2>(scan, rows, rows.first, panel * V::kWidth, gx_rows + panel * kWidth, gh);
      for (; panel < rows.panels.end; ++panel) {
        const A* gx = gx_rows + panel * kWidth;
        int64_t i = 0;
        for (; i + 2 <= rows.count; i += 2, gx += 2 * gx_row, gh += 2 * kWidth)
          forward<2, 1>(scan, rows, rows.first + i, panel * V::kWidth, gx, gh);
        if (i < rows.count) {
          forward<1, 1>(scan, rows, rows.first + i, panel * V::kWidth, gx, gh);
          gh += kWidth;
        }
      }
    } else {
      for (; panel < rows.panels.end; ++panel) {
        const int64_t unit = scan.w_hh_.unit(panel);
        const A* gx = gx_rows + kGates * unit;
        with_constant<kUnitVecs>(scan.w_hh_.unit_vecs(panel), [&]<int kVecs>() FASTRNN_LAMBDA {
          for (int64_t i = 0; i < rows.count; ++i, gx += gx_row, gh += kGates * kVecs * V::kWidth)
            forward<1, kVecs>(scan, rows, rows.first + i, unit, gx, gh);
        });
      }
    }
  }

  // kVecs vectors of units from `unit` on, for kRows rows of the part from the i-th on.
  template <int kRows, int kVecs>
  FASTRNN_FN static void forward(ForwardScan<S>& scan, const ForwardRows<S>& rows, int64_t i, int64_t unit, const A* gx,
                                 const A* gh) {
    using B = Bundle<V, kRows * kVecs>;
    const ScanParams<S>& p = scan.p;
    const int64_t H = scan.H, gx_row = scan.gx_row_, t = rows.t;
    const int64_t r_row = scan.r_row, r_sums = scan.r_sums, h_row = scan.h_row, h_sums = scan.h_sums;
    A* const c = scan.c_.get();
    A* const sums = scan.h_sums_.get();
    E* const h_next = scan.projected ? scan.unprojected_.get() : rows.h_next;
    const int64_t h_next_row = scan.projected ? h_row : r_row;
    int64_t row[kRows], sample[kRows];
    for (int j = 0; j < kRows; ++j) {
      row[j] = rows.part.row(i + j);
      sample[j] = scan.schedule.sample(row[j]);
    }
    // Part q of a bundle is vector q % kVecs of row q / kVecs.
    const auto offset = [&](int q, int64_t stride)
                            FASTRNN_LAMBDA { return row[q / kVecs] * stride + unit + q % kVecs * V::kWidth; };
    std::array<B, kGates> x_products, h_products;
    for (int g = 0; g < kGates; ++g) {
      // Vectors of different panels lie all gates apart.
      const auto at = [g](int q, int64_t stride) FASTRNN_LAMBDA {
        const int vec = kUnitVecs == 1 ? q % kVecs * kGates + g : g * kVecs + q % kVecs;
        return q / kVecs * stride + vec * V::kWidth;
      };
      x_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(gx + at(q, gx_row)); });
      h_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(gh + at(q, kGates * kVecs * V::kWidth)); });
    }
    State<B> state;
    if constexpr (kKeepsSums)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(sums + offset(q, r_sums)); });
    else if constexpr (Cell::kReadsPreviousH)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(rows.h + offset(q, r_row)); });
    if constexpr (kHasC) state.c = B::of([&](int q) FASTRNN_LAMBDA { return V::load(c + offset(q, h_sums)); });
    std::array<B, Cell::kSaved> saved;
    Cell::forward(x_products, h_products, state, saved);

    // The next step's lines are fetched meanwhile: they are far away, and a store to one would wait for it.
    const int64_t next = scan.schedule.next(t);
    const auto store = [&]<class T>(const B& values, const Sequence<T>& to, int64_t column) FASTRNN_LAMBDA {
      for (int q = 0; q < kRows * kVecs; ++q) {
        const int64_t first = unit + q % kVecs * V::kWidth;
        store_as<T>(values.part[q], to.row(t, sample[q / kVecs]) + column + first, H - first);
        __builtin_prefetch(to.row(next, sample[q / kVecs]) + column + first, 1);
      }
    };
    for (int q = 0; q < kRows * kVecs; ++q) {
      store_as(state.h.part[q], h_next + offset(q, h_next_row), V::kWidth);
      if constexpr (kKeepsSums) state.h.part[q].store(sums + offset(q, r_sums));
      if constexpr (kHasC) state.c.part[q].store(c + offset(q, h_sums));
    }
    if (!scan.projected) store(state.h, p.y, 0);
    if constexpr (kHasC)
      if (p.cells) store(state.c, p.cells, 0);
    if (p.gates)
      for (int k = 0; k < Cell::kSaved; ++k) store(saved[k], p.gates, k * H);
  }

  // The gates of a chunk's rows, as forward computed them.
  static void recompute(BackwardScan<S>& scan, const RecomputedRows<S>& rows) {
    const A* gh = rows.gh;
    for (int64_t panel = rows.panels.begin; panel < rows.panels.end; ++panel) {
      const int64_t vecs = scan.forward_hh_.unit_vecs(panel);
      for (int64_t m = rows.first; m < rows.first + rows.count; ++m) {
        for (int64_t v = 0; v < vecs; ++v) recompute(scan, m, panel, v, gh + v * V::kWidth);
        gh += kGates * vecs * V::kWidth;
      }
    }
  }

  // Vector v of a panel's units for the chunk's row m.
  FASTRNN_FN static void recompute(BackwardScan<S>& scan, int64_t m, int64_t panel, int64_t v, const A* gh) {
    const int64_t H = scan.H;
    const int64_t stride = scan.forward_hh_.unit_vecs(panel) * V::kWidth;
    const int64_t unit = scan.forward_hh_.unit(panel) + v * V::kWidth;
    const A* gx = scan.gx_.get() + m * scan.gx_row_ + scan.forward_ih_.offset(panel) + v * V::kWidth;
    std::array<V, kGates> x_products, h_products;
    for (int g = 0; g < kGates; ++g) {
      x_products[g] = V::load(gx + g * stride);
      h_products[g] = V::load(gh + g * stride);
    }
    State<V> state{};
    if constexpr (Cell::kReadsPreviousH) state.h = load_as_vec(scan.h_.get() + m * scan.r_row + unit, V::kWidth);
    if constexpr (kHasC) state.c = load_first(scan.c_before_[m] + unit, H - unit);
    std::array<V, Cell::kSaved> saved;
    Cell::forward(x_products, h_products, state, saved);
    for (int k = 0; k < Cell::kSaved; ++k)
      store_as<S>(saved[k], scan.gates_.get() + (m * Cell::kSaved + k) * H + unit, H - unit);
  }

  // The gate gradients of a row's units, and what flows into the state beside gh.
  static void backward(BackwardScan<S>& scan, const BackwardRow& at) {
    const ScanParams<S>& p = scan.p;
    const ScanGradients<S>& d = scan.d;
    const bool projected = scan.projected;
    const auto [m, t, r, range] = at;
    const int64_t H = scan.H;
    const int64_t sample = scan.schedule.sample(r);
    const S* const dy = d.y && !projected ? d.y.row(t, sample) : nullptr;
    const S* const y = Cell::kReadsNextH ? p.y.row(t, sample) : nullptr;
    const S* const gates = Cell::kSaved == 0 ? nullptr
                           : scan.recomputes ? scan.gates_.get() + m * Cell::kSaved * H
                                             : p.gates.row(t, sample);
    const A* const c_next = kHasC ? p.cells.row(t, sample) : nullptr;
    const A* const c_prev = kHasC ? scan.c_before(t, r) : nullptr;
    const A* const d_c = kHasC && d.cells ? d.cells.row(t, sample) : nullptr;
    A* const dh = projected ? scan.d_unprojected_.get() + r * scan.h_sums : scan.dh_.get() + r * scan.r_sums;
    A* const dc = kHasC ? scan.dc_.get() + r * scan.h_sums : nullptr;
    E* const d_gx = scan.d_gx_.get() + m * scan.gate_row_;
    E* const d_gh = scan.d_gh_ + m * scan.gate_row_;
    const E* const h_prev = Cell::kReadsPreviousH ? scan.h_.get() + m * scan.r_row : nullptr;
    for (int64_t unit = range.begin; unit < range.end; unit += V::kWidth) {
      const int64_t units = H - unit;
      std::array<V, Cell::kSaved> saved;
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load_as_vec(gates + k * H + unit, units);
      State<V> prev{}, next{}, d_state{};
      d_state.h = V::load(dh + unit);
      if (dy) d_state.h = d_state.h + load_strided(dy + unit * d.y.col_stride, d.y.col_stride, units);
      if constexpr (Cell::kReadsPreviousH) prev.h = load_as_vec(h_prev + unit, V::kWidth);
      if constexpr (Cell::kReadsNextH) next.h = load_as_vec(y + unit, units);
      if constexpr (kHasC) {
        prev.c = load_first(c_prev + unit, units);
        next.c = load_first(c_next + unit, units);
        d_state.c = V::load(dc + unit);
        if (d_c) d_state.c = d_state.c + load_strided(d_c + unit * d.cells.col_stride, d.cells.col_stride, units);
        if (d.weights.hr)
          store_as(Cell::output(saved, next.c), scan.unprojected_.get() + m * scan.h_row + unit, V::kWidth);
      }
      std::array<V, kGates> gx, gh;
      Cell::backward(saved, prev, next, d_state, gx, gh);
      for (int g = 0; g < kGates; ++g) {
        store_as(gx[g], d_gx + g * H + unit, units);
        if constexpr (Cell::kSplitGateGradients) store_as(gh[g], d_gh + g * H + unit, units);
      }
      d_state.h.store(dh + unit);
      if constexpr (kHasC) d_state.c.store(dc + unit);
    }
  }
};

template <class Cell, class S>
constexpr CellKernels<S> kCellKernels = {kTraits<Cell>, CellUpdate<Cell, S>::forward, CellUpdate<Cell, S>::recompute,
                                         CellUpdate<Cell, S>::backward};

}  // namespace fastrnn::FASTRNN_ISA
