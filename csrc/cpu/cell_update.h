// A cell's side of the seam (cpu/cell_kernels.h): its step over rows and vectors of units, forward and backward.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "cells/cell.h"
#include "cpu/backward_scan.h"
#include "cpu/cell_kernels.h"
#include "cpu/forward_scan.h"
#include "cpu/lane_update.h"

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
  static constexpr int kInputGates = Cell::kInputGates;
  static constexpr int kRecurrentGates = Cell::kRecurrentGates;
  static constexpr int kCellStates = Cell::kCellStates;
  static constexpr int kUnitVecs = std::max(1, kMaxVecs / kTraits<Cell>.panel_gates());  // of a panel, at most
  static constexpr bool kRoundsState = ForwardScan<S>::kRoundsState;
  static constexpr bool kReadsSums = kPaired<E> && Cell::kReadsPreviousH;
  // Dual numbers take twice the registers, and twice as long to compile: their vectors go one by one.
  static constexpr int kTogether = kDual<S> ? 1 : 2;

  // A vector of a row's units and its products, those of one gate `gate` after those of another: where the last units
  // share vectors, lanes past H hold another gate's. What comes of these lanes is stored nowhere but in padding.
  struct Place {
    int64_t row;  // of the part
    int64_t unit;
    const A* gx;
    const A* gh;
    int64_t gate;
  };

  // As many vectors go side by side as hide their latency and fit the registers: those of a panel, or where it has but
  // one, two of the rows of all panels. An odd one goes as both, which takes no code of its own.
  static void forward(ForwardScan<S>& scan, const ForwardRows<S>& rows) {
    const int64_t gx_row = scan.gx_row_;
    const A* const gx_rows = scan.gx_.get() + (rows.chunk_row + rows.first) * gx_row;
    if constexpr (kUnitVecs == 1) {
      constexpr int64_t kGxWidth = kInputGates * V::kWidth;
      const int64_t last = scan.w_hh_.panels() - 1, last_gate = scan.w_hh_.gate_distance(last);
      int64_t panel = rows.panels.begin, i = 0;
      const A* gx = gx_rows + panel * kGxWidth;
      const A* gh = rows.gh;
      const auto next_place = [&]() FASTRNN_LAMBDA {
        const int64_t gate = panel == last ? last_gate : V::kWidth;
        const Place place{rows.first + i, panel * V::kWidth, gx, gh, gate};
        gx += gx_row;
        gh += round_up_to_vec<A>(kRecurrentGates * gate);
        if (++i == rows.count) {
          i = 0;
          gx = gx_rows + ++panel * kGxWidth;
        }
        return place;
      };
      for (int64_t left = rows.panels.size() * rows.count; left > 0; left -= kTogether) {
        std::array<Place, kTogether> places;
        places[0] = next_place();
        for (int q = 1; q < kTogether; ++q) places[q] = q < left ? next_place() : places[0];
        forward(scan, rows, places);
      }
    } else {
      const A* gh = rows.gh;
      for (int64_t panel = rows.panels.begin; panel < rows.panels.end; ++panel) {
        const int64_t unit = scan.w_hh_.unit(panel);
        const A* gx = gx_rows + kInputGates * unit;
        const int64_t gate = scan.w_hh_.gate_distance(panel), gh_row = scan.w_hh_.columns(panel);
        with_constant<kUnitVecs>(scan.w_hh_.unit_vecs(panel), [&]<int kVecs>() FASTRNN_LAMBDA {
          for (int64_t i = 0; i < rows.count; ++i, gx += gx_row, gh += gh_row) {
            std::array<Place, kVecs> places;
            for (int q = 0; q < kVecs; ++q)
              places[q] = {rows.first + i, unit + q * V::kWidth, gx + q * V::kWidth, gh + q * V::kWidth, gate};
            forward(scan, rows, places);
          }
        });
      }
    }
  }

  template <std::size_t kPlaces>
  FASTRNN_FN static void forward(ForwardScan<S>& scan, const ForwardRows<S>& rows,
                                 const std::array<Place, kPlaces>& places) {
    using B = Bundle<V, static_cast<int>(kPlaces)>;
    constexpr int kVecs = static_cast<int>(kPlaces);
    const ScanParams<S>& p = scan.p;
    const int64_t H = scan.H, t = rows.t;
    const int64_t r_row = scan.r_row, r_sums = scan.r_sums, h_row = scan.h_row;
    const int64_t c_row = scan.c_row, c_state = scan.h_sums;
    A* const c = scan.c_.get();
    A* const sums = scan.h_sums_.get();
    E* const h_next = scan.projected ? scan.unprojected_.get() : rows.h_next;
    const int64_t h_next_row = scan.projected ? h_row : r_row;
    int64_t row[kVecs], sample[kVecs];
    for (int q = 0; q < kVecs; ++q) {
      row[q] = rows.part.row(places[q].row);
      sample[q] = scan.schedule.sample(row[q]);
    }
    const auto offset = [&](int q, int64_t stride) FASTRNN_LAMBDA { return row[q] * stride + places[q].unit; };
    std::array<B, kInputGates> x_products;
    std::array<B, kRecurrentGates> h_products;
    for (int g = 0; g < kInputGates; ++g)
      x_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(places[q].gx + g * places[q].gate); });
    for (int g = 0; g < kRecurrentGates; ++g)
      h_products[g] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(places[q].gh + g * places[q].gate); });
    const Extras<B, Cell> extra = extras<B>(scan, [&](auto&& load) FASTRNN_LAMBDA {
      return B::of([&](int q) FASTRNN_LAMBDA {
        return load(places[q].unit, [&](int k) FASTRNN_LAMBDA { return p.extra[k].row(t, sample[q]); });
      });
    });
    StateOf<Cell, B> state;
    if constexpr (kReadsSums)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(sums + offset(q, r_sums)); });
    else if constexpr (Cell::kReadsPreviousH)
      state.h = B::of([&](int q) FASTRNN_LAMBDA { return V::load(rows.h + offset(q, r_row)); });
    for (int k = 0; k < kCellStates; ++k)
      state.c[k] = B::of([&](int q) FASTRNN_LAMBDA { return V::load(c + offset(q, c_row) + k * c_state); });
    std::array<B, Cell::kSaved> saved;
    forward_of<Cell>(x_products, h_products, extra, state, saved);

    // The next step's lines are fetched meanwhile: they are far away, and a store to one would wait for it.
    const int64_t next = std::clamp<int64_t>(scan.schedule.next(t), 0, scan.schedule.T - 1);
    const auto store = [&]<class T>(const B& values, const Sequence<T>& to, int64_t column) FASTRNN_LAMBDA {
      for (int q = 0; q < kVecs; ++q) {
        const int64_t first = places[q].unit;
        store_as<T>(values.part[q], to.row(t, sample[q]) + column + first, H - first);
        __builtin_prefetch(to.row(next, sample[q]) + column + first, 1);
      }
    };
    for (int q = 0; q < kVecs; ++q) {
      // Pairs of depth reach past H, where products read zeros.
      store_as(state.h.part[q], h_next + offset(q, h_next_row), kPaired<E> ? H - places[q].unit : V::kWidth);
      if (kReadsSums || (kRoundsState && !scan.projected)) state.h.part[q].store(sums + offset(q, r_sums));
      for (int k = 0; k < kCellStates; ++k) state.c[k].part[q].store(c + offset(q, c_row) + k * c_state);
    }
    if (!scan.projected) store(state.h, p.y, 0);
    if (p.cells)
      for (int k = 0; k < kCellStates; ++k) store(state.c[k], p.cells, k * H);
    if (p.gates)
      for (int k = 0; k < Cell::kSaved; ++k) store(saved[k], p.gates, k * H);
  }

  // What a cell reads beside products and states. `gather(load)` gives a value of load(unit, row), where row(k) is a
  // row of the k-th extra input.
  template <class Values, class AnyScan, class Gather>
  FASTRNN_FN static Extras<Values, Cell> extras(const AnyScan& scan, Gather&& gather) {
    Extras<Values, Cell> extra;
    const int64_t H = scan.H;
    for (int k = 0; k < Cell::kVectors; ++k) {
      const A* const vector = scan.vectors_.get() + k * scan.h_sums;
      extra.vectors[k] = gather([&](int64_t unit, auto&&) FASTRNN_LAMBDA { return V::load(vector + unit); });
    }
    for (int k = 0; k < Cell::kExtraInputs; ++k) {
      const Sequence<const S>& input = scan.p.extra[k];
      extra.inputs[k] = gather([&](int64_t unit, auto&& row) FASTRNN_LAMBDA {
        return load_strided(row(k) + unit * input.col_stride, input.col_stride, H - unit);
      });
    }
    for (int k = 0; k < Cell::kNumbers; ++k) extra.numbers[k] = Values(typename Values::Scalar(scan.p.numbers[k]));
    return extra;
  }

  // The gates of a chunk's rows, as forward computed them.
  static void recompute(BackwardScan<S>& scan, const RecomputedRows<S>& rows) {
    const A* gh = rows.gh;
    for (int64_t panel = rows.panels.begin; panel < rows.panels.end; ++panel) {
      const int64_t vecs = scan.forward_hh_.unit_vecs(panel), gh_row = scan.forward_hh_.columns(panel);
      for (int64_t m = rows.first; m < rows.first + rows.count; ++m, gh += gh_row)
        for (int64_t v = 0; v < vecs; ++v) recompute(scan, m, panel, v, gh + v * V::kWidth);
    }
  }

  // Vector v of a panel's units for the chunk's row m.
  FASTRNN_FN static void recompute(BackwardScan<S>& scan, int64_t m, int64_t panel, int64_t v, const A* gh) {
    const int64_t H = scan.H;
    const int64_t gate = scan.forward_hh_.gate_distance(panel);
    const int64_t unit = scan.forward_hh_.unit(panel) + v * V::kWidth;
    const A* gx = scan.gx_.get() + m * scan.gx_row_ + scan.forward_ih_.offset(panel) + v * V::kWidth;
    std::array<V, kInputGates> x_products;
    std::array<V, kRecurrentGates> h_products;
    for (int g = 0; g < kInputGates; ++g) x_products[g] = V::load(gx + g * gate);
    for (int g = 0; g < kRecurrentGates; ++g) h_products[g] = V::load(gh + g * gate);
    const Extras<V, Cell> extra = extras<V>(scan, [&](auto&& load) FASTRNN_LAMBDA {
      return load(unit, [&](int k) FASTRNN_LAMBDA { return scan.extra_[m * Cell::kExtraInputs + k]; });
    });
    StateOf<Cell, V> state{};
    if constexpr (Cell::kReadsPreviousH) state.h = load_as_vec(scan.h_.get() + m * scan.r_row + unit, V::kWidth);
    for (int k = 0; k < kCellStates; ++k) state.c[k] = load_first(scan.c_before_[m] + k * H + unit, H - unit);
    std::array<V, Cell::kSaved> saved;
    forward_of<Cell>(x_products, h_products, extra, state, saved);
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
    const A* const c_next = kCellStates > 0 ? p.cells.row(t, sample) : nullptr;
    const A* const c_prev = kCellStates > 0 ? scan.c_before(t, r) : nullptr;
    const A* const d_c = kCellStates > 0 && d.cells ? d.cells.row(t, sample) : nullptr;
    A* const dh = projected ? scan.d_unprojected_.get() + r * scan.h_sums : scan.dh_.get() + r * scan.r_sums;
    A* const dc = kCellStates > 0 ? scan.dc_.get() + r * scan.c_row : nullptr;
    E* const d_gx = scan.d_gx_.get() + m * scan.input_gate_row_;
    E* const d_gh = scan.d_gh_ + m * scan.recurrent_gate_row_;
    A* const d_vectors = d.weights.vectors ? scan.d_vectors_.get() + m * scan.vector_row_ : nullptr;
    const E* const h_prev = Cell::kBackwardReadsPreviousH ? scan.h_.get() + m * scan.r_row : nullptr;
    for (int64_t unit = range.begin; unit < range.end; unit += V::kWidth) {
      const int64_t units = H - unit;
      std::array<V, Cell::kSaved> saved;
      for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load_as_vec(gates + k * H + unit, units);
      const Extras<V, Cell> extra = extras<V>(scan, [&](auto&& load) FASTRNN_LAMBDA {
        return load(unit, [&](int k) FASTRNN_LAMBDA { return p.extra[k].row(t, sample); });
      });
      StateOf<Cell, V> prev{}, next{}, d_state{};
      d_state.h = V::load(dh + unit);
      if (dy) d_state.h = d_state.h + load_strided(dy + unit * d.y.col_stride, d.y.col_stride, units);
      if constexpr (Cell::kBackwardReadsPreviousH) prev.h = load_as_vec(h_prev + unit, V::kWidth);
      if constexpr (Cell::kReadsNextH) next.h = load_as_vec(y + unit, units);
      for (int k = 0; k < kCellStates; ++k) {
        const int64_t column = k * H + unit;
        prev.c[k] = load_first(c_prev + column, units);
        next.c[k] = load_first(c_next + column, units);
        d_state.c[k] = V::load(dc + k * scan.h_sums + unit);
        if (d_c)
          d_state.c[k] = d_state.c[k] + load_strided(d_c + column * d.cells.col_stride, d.cells.col_stride, units);
      }
      if constexpr (kHasOutput<Cell>)
        if (d.weights.hr)
          store_as(output_of<Cell>(saved, extra, prev, next), scan.unprojected_.get() + m * scan.h_row + unit,
                   V::kWidth);
      std::array<V, kInputGates> gx;
      std::array<V, kRecurrentGates> gh;
      ExtraGradients<V, Cell> d_extra;
      backward_of<Cell>(saved, extra, prev, next, d_state, gx, gh, d_extra);
      for (int g = 0; g < kInputGates; ++g) store_as(gx[g], d_gx + g * H + unit, units);
      for (int g = 0; Cell::kSplitGateGradients && g < kRecurrentGates; ++g)
        store_as(gh[g], d_gh + g * H + unit, units);
      d_state.h.store(dh + unit);
      for (int k = 0; k < kCellStates; ++k) d_state.c[k].store(dc + k * scan.h_sums + unit);
      for (int k = 0; d_vectors && k < Cell::kVectors; ++k)
        store_first(d_extra.vectors[k], d_vectors + k * H + unit, units);
      for (int k = 0; k < Cell::kExtraInputs; ++k)
        if (d.extra[k]) store_as(d_extra.inputs[k], d.extra[k].row(t, sample) + unit, units);
    }
  }
};

template <class Cell, class S>
constexpr bool kHasLanes = kTraits<Cell>.suits_lanes() && !kDual<S> && !kPaired<Operand<S>>;

template <class Cell, class S>
constexpr CellKernels<S> kCellKernels = [] {
  using Update = CellUpdate<Cell, S>;
  CellKernels<S> kernels{kTraits<Cell>, Update::forward, Update::recompute, Update::backward};
  if constexpr (kHasLanes<Cell, S>) {
    kernels.forward_in_lanes = LaneUpdate<Cell, S>::forward;
    kernels.backward_in_lanes = LaneUpdate<Cell, S>::backward;
  }
  return kernels;
}();

}  // namespace fastrnn::FASTRNN_ISA
