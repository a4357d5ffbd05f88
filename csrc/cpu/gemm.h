// Matrix products for everything: input projection, recurrence, and all gradients go through one micro-kernel.
//
// Weights are packed into panels of a few vectors of hidden units, the gates of the same units side by side, so that
// whoever takes the product of a panel holds every gate of its units. A panel is walked in slices that stay in the
// first-level cache for all rows, while the tiles of a slice fetch the next one: weights may then stream from far
// away. Every element is summed over k in one order, whatever the shape of the tile it falls in: a sample's bits do
// not depend on the batch around it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/micro_kernel.h"
#include "cpu/packed_weights.h"
#include "cpu/short_products.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// Calls f(first row, rows, first vector, vectors) for tiles in matrix registers. Up to 16 rows are one block. More are
// tiles of two, a whole block and another, and end with a whole one alone if their number is odd. A configuration tells
// the rows of both blocks; loading it clears all registers and takes far longer than a product. So the tiles of two are
// alike if the rows can be divided so, as up to 48 always can, and one configuration serves all slices. Otherwise whole
// tiles go first and what is left last, for all vectors each, which takes two loads for a slice.
template <class F>
FASTRNN_FN void for_matrix_tiles(int64_t rows, int64_t all_vecs, F&& f) {
  const int64_t blocks = (rows + kMatrixRows - 1) / kMatrixRows;
  const int64_t pairs = blocks / 2;
  const int64_t paired = pairs == 0 ? 0 : rows - blocks % 2 * kMatrixRows;  // rows in tiles of two blocks
  const bool alike = pairs == 0 || paired % pairs == 0;
  const int64_t most = pairs > 0 && alike ? paired / pairs : 2 * kMatrixRows;
  const int64_t most_vecs = pairs > 0 ? kMaxVecs / 2 : kMaxVecs;
  const int64_t change = alike ? rows : paired / most * most;
  for (const Range part : {Range{0, change}, Range{change, rows}})
    for (int64_t v = 0; v < all_vecs; v += most_vecs)
      for (int64_t first = part.begin, count; first < part.end; first += count) {
        count = first < paired ? std::min(most, paired - first) : rows - first;
        f(first, count, v, std::min(most_vecs, all_vecs - v));
      }
}

// Calls f(first row, rows, first vector, vectors) for tiles of nearly equal size.
template <class E, class F>
FASTRNN_FN void for_tiles(int64_t rows, int64_t all_vecs, F&& f) {
  if constexpr (kInMatrices<E>) return for_matrix_tiles(rows, all_vecs, f);
  for (int64_t v = 0; v < all_vecs; v += kTileVecs<E>) {
    const int64_t vecs = std::min<int64_t>(kTileVecs<E>, all_vecs - v);
    const int64_t most = tile_rows<E>(static_cast<int>(vecs));
    const int64_t tiles = (rows + most - 1) / most;
    for (int64_t i = 0, first = 0; i < tiles; ++i) {
      const int64_t count = (rows - first + tiles - i - 1) / (tiles - i);
      f(first, count, v, vecs);
      first += count;
    }
  }
}

constexpr int64_t kFusedRows = 48;  // their products, part of a and slice of a panel share the first-level cache

// Computes out = init + a W^T for one row and a panel, from the weights as they lie: a step of one sample takes each
// of them once. The sums are those of the micro-kernel.
template <class S, int kVecs>
[[gnu::noinline]] void multiply_row(const Accumulate<S>* a, const PackedWeights<S>& w, int64_t panel,
                                    const Accumulate<S>* init, Accumulate<S>* out) {
  using A = Accumulate<S>;
  using V = Vec<A>;
  int64_t rows[kVecs], units[kVecs], columns[kVecs];
  w.for_vecs(panel, [&, v = 0](int64_t row, int64_t count, int64_t column) mutable {
    rows[v] = row;
    units[v] = count;
    columns[v++] = column;
  });
  V total[kVecs];
  int64_t k = 0;
  do {  // a depth of 0 takes one turn, too: the product is then init
    const bool first = k == 0;
    V sum[kVecs];
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) sum[v] = init && first ? V::load(init + columns[v]) : V(A(0));
    const int64_t end = std::min(k + kSumDepth<A>, w.depth());
    for (; k < end && w.has_columns(); ++k) {
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) sum[v] = mul_add(V(a[k]), w.load_column(rows[v], k, units[v]), sum[v]);
    }
    for (; k < end; k += V::kWidth) {
      const int64_t depths = std::min<int64_t>(V::kWidth, end - k);
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) {
        typename PackedWeights<S>::Block block;
        if (w.is_whole(units[v], depths)) {
          w.load_whole_block(rows[v], k, block);
          FASTRNN_UNROLL(16)
          for (int j = 0; j < V::kWidth; ++j) sum[v] = mul_add(V(a[k + j]), block[j], sum[v]);
        } else {
          w.load_block(rows[v], units[v], k, depths, block);
          for (int64_t j = 0; j < depths; ++j) sum[v] = mul_add(V(a[k + j]), block[j], sum[v]);
        }
      }
    }
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) total[v] = first ? sum[v] : total[v] + sum[v];
  } while (k < w.depth());
  for (int v = 0; v < kVecs; ++v) store_first(total[v], out + columns[v], w.gate_distance(panel));
}

// Computes out = init + a W^T for one row and two panels that were packed ahead and lie side by side. A core begins two
// multiply-adds a cycle, each of which takes four: the four sums of a panel hide half of that, eight all of it. The
// sums are those of the micro-kernel.
template <class A, int kVecs, int kNextVecs>
[[gnu::noinline]] void multiply_row_by_two(const A* a, int64_t depth, const A* panel, const A* init, A* out) {
  using V = Vec<A>;
  constexpr int kAll = kVecs + kNextVecs;
  constexpr int64_t kColumns = kVecs * V::kWidth, kNextColumns = kNextVecs * V::kWidth;
  const A* const next = panel + kColumns * depth;
  int64_t k = 0;
  do {  // a depth of 0 takes one turn, too: the product is then init
    const bool first = k == 0;
    V sum[kAll];
    FASTRNN_UNROLL(8)
    for (int v = 0; v < kAll; ++v) sum[v] = init && first ? V::load(init + v * V::kWidth) : V(A(0));
    for (const int64_t end = std::min(k + kSumDepth<A>, depth); k < end; ++k) {
      const V x(a[k]);
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) sum[v] = mul_add(x, V::load(panel + k * kColumns + v * V::kWidth), sum[v]);
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kNextVecs; ++v)
        sum[kVecs + v] = mul_add(x, V::load(next + k * kNextColumns + v * V::kWidth), sum[kVecs + v]);
    }
    FASTRNN_UNROLL(8)
    for (int v = 0; v < kAll; ++v) {
      A* const target = out + v * V::kWidth;
      (first ? sum[v] : V::load(target) + sum[v]).store(target);
    }
  } while (k < depth);
}

// Rows of a that a product reads, in the type that the weights ask for.
template <class S>
struct Factors {
  const Operand<S>* a;
  int64_t a_row;
  Int8Rows int8;  // where the weights are int8

  Factors(int64_t rows, const Operand<S>* data, int64_t row, const PackedWeights<S>& w)
      : a(data), a_row(row), int8(int8_rows(rows, w)) {}

 private:
  Int8Rows int8_rows(int64_t rows, const PackedWeights<S>& w) const {
    if constexpr (std::is_same_v<S, float>)
      if (w.kept().type == WeightType::kInt8) return {rows, a, a_row, w.depth()};
    return {};
  }
};

// Computes out[r] = init + a[r] W^T for `rows` rows of a and one panel of those that are walked.
template <class S>
void multiply_panel(int64_t rows, const Factors<S>& factors, const PackedWeights<S>& w, int64_t panel, Range panels,
                    const Accumulate<S>* init, Accumulate<S>* out, int64_t out_row) {
  using E = Operand<S>;
  const Operand<S>* const a = factors.a;
  const int64_t a_row = factors.a_row;
  alignas(64) typename PackedWeights<S>::Slice scratch;
  const int64_t columns = w.columns(panel);
  const int64_t vecs = columns / Vec<Accumulate<S>>::kWidth;
  if constexpr (!kPaired<E> && !kDual<E>)
    if (rows == 1 && !w.ahead()) {  // a panel then has no more than kMaxVecs vectors of units
      static constexpr std::array kTable{multiply_row<S, 1>, multiply_row<S, 2>, multiply_row<S, 3>,
                                         multiply_row<S, 4>};
      static_assert(kTable.size() == kMaxVecs);
      return kTable[w.gates() * w.unit_vecs(panel) - 1](a, w, panel, init, out);
    }
  if constexpr (std::is_same_v<S, float>) {
    const KeptWeights& kept = w.kept();
    const int32_t* const words = kept.words() + (w.is_short() ? w.word_at(kept.type, panel, 0) : 0);
    if (kept.type == WeightType::kInt8)
      return multiply_int8(rows, factors.int8, words, vecs, kept.scales + w.offset(panel), init, out, out_row);
    if (rows == 1 && w.is_short()) return multiply_bfloat16_row<1>(a, w.depth(), words, vecs, init, out);
  }
  int64_t k = 0;
  do {  // a depth of 0 takes one turn, too: the product is then init
    const int64_t depth = std::min(kSumDepth<E>, w.depth() - k);
    const E* slice = w.slice(panel, k, depth, scratch);
    const E* next = w.after(panel, k + depth, panels, slice);
    const E* next_end = next + depth * columns;
    for_tiles<E>(rows, vecs, [&](int64_t first, int64_t count, int64_t v, int64_t tile_vecs) {
      const int64_t column = v * Vec<Accumulate<S>>::kWidth;
      run_tile<E>(count, tile_vecs,
                  {.depth = depth,
                   .a = a + first * a_row + k,
                   .a_row = a_row,
                   .a_depth = 1,
                   .b = slice + kFactorDepth<E> * column,
                   .b_depth = columns,
                   .ahead = next < next_end ? next : slice,
                   .ahead_depth = kLine<E>,
                   .init = init && k == 0 ? init + column : nullptr,
                   .out = out + first * out_row + column,
                   .out_row = out_row,
                   .add = k > 0});
      next += depth / kFactorDepth<E> * kLine<E>;  // every tile fetches a part of the slice
    });
    k += depth;
  } while (k < w.depth());
}

// Does so for a panel and, if it can, for the next one before `end`; returns how many it did.
template <class S>
int64_t multiply_panels(int64_t rows, const Factors<S>& factors, const PackedWeights<S>& w, int64_t panel, int64_t end,
                        Range panels, const Accumulate<S>* init, Accumulate<S>* out, int64_t out_row) {
  using E = Operand<S>;
  constexpr int64_t kWidth = Vec<Accumulate<S>>::kWidth;
  const int64_t vecs = w.columns(panel) / kWidth;
  const bool by_two = rows == 1 && vecs <= kMaxVecs && panel + 1 < end;
  const int64_t next_vecs = by_two ? w.columns(panel + 1) / kWidth : 0;
  if constexpr (!kPaired<E> && !kDual<E>)
    if (by_two && next_vecs <= kMaxVecs && w.ahead() && !w.is_short()) {
      static constexpr auto kTable = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
        return std::array{multiply_row_by_two<E, kIndex / kMaxVecs + 1, kIndex % kMaxVecs + 1>...};
      }(std::make_integer_sequence<int, kMaxVecs * kMaxVecs>{});
      typename PackedWeights<S>::Slice unused;
      kTable[(vecs - 1) * kMaxVecs + next_vecs - 1](factors.a, w.depth(), w.slice(panel, 0, 0, unused), init, out);
      return 2;
    }
  if constexpr (std::is_same_v<S, float>)
    if (by_two && vecs == next_vecs && w.kept().type == WeightType::kBFloat16) {
      const int32_t* const words = w.kept().words() + w.word_at(WeightType::kBFloat16, panel, 0);
      multiply_bfloat16_row<2>(factors.a, w.depth(), words, vecs, init, out);
      return 2;
    }
  multiply_panel(rows, factors, w, panel, panels, init, out, out_row);
  return 1;
}

// Computes out[r] = init + a[r] W^T for `rows` rows of a and a range of panels. init is [width] or null; out is in
// panel order.
template <class S>
void multiply(int64_t rows, const Operand<S>* a, int64_t a_row, const PackedWeights<S>& w, Range panels,
              const Accumulate<S>* init, Accumulate<S>* out, int64_t out_row) {
  const Factors<S> factors(rows, a, a_row, w);
  for (int64_t p = panels.begin; p < panels.end;)
    p += multiply_panels(rows, factors, w, p, panels.end, panels, init ? init + w.offset(p) : nullptr,
                         out + w.offset(p), out_row);
}

// The same, but epilogue(first row, rows, panels, products) takes some panels of some rows while they are in L1:
// few rows take many panels at once. Products are [panel][rows][columns of the panel]; there are none without gates.
template <class S, class Epilogue>
void multiply_fused(int64_t rows, const Operand<S>* a, int64_t a_row, const PackedWeights<S>& w, Range panels,
                    const Accumulate<S>* init, Epilogue&& epilogue) {
  using A = Accumulate<S>;
  alignas(64) A products[kFusedRows * kMaxVecs * Vec<A>::kWidth];
  const int64_t fused_rows = kFusedRows * kMaxVecs / std::max(kMaxVecs, w.gates());
  const int64_t blocks = (rows + fused_rows - 1) / fused_rows;
  for (int64_t block = 0; block < blocks; ++block) {
    const auto [first, last] = cpu::share(rows, block, blocks);
    const int64_t count = last - first;
    const Factors<S> factors(count, a + first * a_row, a_row, w);
    const int64_t most_panels = fused_rows / count;
    for (int64_t begin = panels.begin; begin < panels.end; begin += most_panels) {
      const Range taken{begin, std::min(begin + most_panels, panels.end)};
      A* out = products;
      for (int64_t p = taken.begin; p < taken.end && w.gates() > 0;) {
        const int64_t done = multiply_panels(count, factors, w, p, taken.end, panels,
                                             init ? init + w.offset(p) : nullptr, out, w.columns(p));
        for (const int64_t last = p + done; p < last; ++p) out += count * w.columns(p);
      }
      epilogue(first, count, taken, static_cast<const A*>(products));
    }
  }
}

// Rows m of a factor of a weight gradient. On the left, element i of row m lies at data[m * depth + i * row]; on the
// right, the row starts at data[m * depth]. Pairs of rows are laid out for the micro-kernel by pair_up and pair_across.
template <class E>
struct OuterFactor {
  const E* data;
  int64_t depth;
  int64_t row = 1;

  OuterFactor from(int64_t m) const { return {data + m * depth, depth, row}; }
};

// Lays out the right factor: the columns of rows m and m + 1 side by side, for pairs in a range, and zeros past `rows`.
inline void pair_up(Range pairs, int64_t rows, const BFloat16* from, int64_t row, int64_t columns, BFloat16* out) {
  constexpr int kWidth = Vec<float>::kWidth;
  for (int64_t m = 2 * pairs.begin; m < 2 * pairs.end; m += 2)
    for (int64_t j = 0; j < columns; j += kWidth)
      store_words(
          zip(m < rows ? from + m * row + j : nullptr, m + 1 < rows ? from + (m + 1) * row + j : nullptr, kWidth),
          out + m * row + 2 * j);
}

// Lays out the left factor: its columns in a range as rows, and zeros past `rows`.
inline void pair_across(Range range, int64_t rows, const BFloat16* from, int64_t from_row, BFloat16* out,
                        int64_t out_row) {
  constexpr int kWidth = Vec<float>::kWidth;
  Vec<float> block[kWidth];
  for (int64_t i = range.begin; i < range.end; i += kWidth) {
    const int64_t n = std::min<int64_t>(kWidth, range.end - i);
    for (int64_t m = 0; m < rows; m += 2 * kWidth) {
      for (int j = 0; j < kWidth; ++j) {
        const int64_t k = m + 2 * j;
        block[j] = zip(k < rows ? from + k * from_row + i : nullptr,
                       k + 1 < rows ? from + (k + 1) * from_row + i : nullptr, n);
      }
      transpose(block);
      for (int64_t j = 0; j < n; ++j) store_words(block[j], out + (i + j) * out_row + m);
    }
  }
}

// Adds to a vector of a weight gradient, which counts as zero if it is `fresh`.
template <class A>
FASTRNN_FN void add_to(A* target, Vec<A> sum, bool fresh) {
  const Vec<A> before = fresh ? Vec<A>(A(0)) : Vec<A>::load(target);
  (before + sum).store(target);
}

// Adds a weight gradient as accumulate_outer() does, of so few rows that the sums need no tile: what they are added to
// is walked once, from end to end.
template <int kRows, class E>
void accumulate_outer_of(Range range, OuterFactor<E> left, OuterFactor<E> right, int64_t columns, Accumulate<E>* out,
                         int64_t out_row, bool fresh) {
  using V = Vec<Accumulate<E>>;
  for (int64_t i = range.begin; i < range.end; ++i) {
    V factors[kRows];
    for (int m = 0; m < kRows; ++m) factors[m] = V(left.data[i * left.row + m * left.depth]);
    Accumulate<E>* const target = out + i * out_row;
    for (int64_t j = 0; j < columns; j += V::kWidth) {
      V sum(Accumulate<E>(0));
      FASTRNN_UNROLL(4)
      for (int m = 0; m < kRows; ++m) sum = mul_add(factors[m], V::load(right.data + m * right.depth + j), sum);
      add_to(target + j, sum, fresh);
    }
  }
}

// So many rows of a weight gradient share the second-level cache with their operands.
constexpr int64_t kOuterRows = 240;

// Adds a weight gradient: out[i][:] += sum over the rows m of left[m][i] * right[m][:], for i in a range. What out
// holds counts as zero if it is `fresh`. Rows of out hold whole vectors.
template <class E>
void accumulate_outer(Range range, int64_t rows, OuterFactor<E> left, OuterFactor<E> right, int64_t columns,
                      Accumulate<E>* out, int64_t out_row, bool fresh) {
  using A = Accumulate<E>;
  constexpr int kWidth = Vec<A>::kWidth;
  constexpr int kStep = kFactorDepth<E>;
  if constexpr (!kPaired<E>) {
    static constexpr std::array kTable{accumulate_outer_of<1, E>, accumulate_outer_of<2, E>, accumulate_outer_of<3, E>,
                                       accumulate_outer_of<4, E>};
    if (1 <= rows && rows <= int64_t{kTable.size()})
      return kTable[rows - 1](range, left, right, columns, out, out_row, fresh);
  }
  const int64_t vecs = round_up_to_vec<A>(columns) / kWidth;
  const int64_t depths = padded_depth<E>(rows);
  alignas(64) A sums[kOuterRows * kMaxVecs * kWidth];
  for (int64_t begin = range.begin; begin < range.end; begin += kOuterRows) {
    const int64_t size = std::min(kOuterRows, range.end - begin);
    for (int64_t v = 0; v < vecs; v += kMaxVecs) {
      const int64_t width = std::min<int64_t>(kMaxVecs, vecs - v) * kWidth;
      for (int64_t m = 0; m < depths; m += kSumDepth<E>) {
        const E* slice = right.from(m).data + v * kStep * kWidth;
        const E* next = m + kSumDepth<E> < depths ? slice + kSumDepth<E> * right.depth
                                                  : right.data + (v + kMaxVecs) * kStep * kWidth;
        const E* next_end = next + kStep * width;
        for_tiles<E>(size, width / kWidth, [&](int64_t first, int64_t count, int64_t column, int64_t tile_vecs) {
          run_tile<E>(count, tile_vecs,
                      {.depth = std::min(kSumDepth<E>, depths - m),
                       .a = left.from(m).data + (begin + first) * left.row,
                       .a_row = left.row,
                       .a_depth = left.depth,
                       .b = slice + column * kStep * kWidth,
                       .b_depth = right.depth,
                       .ahead = next < next_end ? next : slice,
                       .ahead_depth = kStep * right.depth,
                       .init = nullptr,
                       .out = sums + first * width + column * kWidth,
                       .out_row = width,
                       .add = m > 0});
          next += kLine<E>;
          if (m + kSumDepth<E> < depths) return;
          for (int64_t i = begin + first; i < begin + first + count; ++i)  // what the sums are added to
            for (int64_t j = 0; j < width; j += kLine<A>) __builtin_prefetch(out + i * out_row + v * kWidth + j, 1);
        });
      }
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < width; j += kWidth)
          add_to(out + (begin + i) * out_row + v * kWidth + j, Vec<A>::load(sums + i * width + j), fresh);
    }
  }
}

// Kahan's summation carries what rounding took from the sum.
template <class V>
struct CompensatedSum {
  V value, lost;

  FASTRNN_FN CompensatedSum() : value(0), lost(0) {}
  FASTRNN_FN void add(V x) {
    const V term = x - lost;
    const V next = value + term;
    lost = (next - value) - term;
    value = next;
  }
};

// Adds a bias gradient: out[i] += sum over the rows m of left[m][i], for i in a range. It has more terms of one sign
// than any other gradient.
template <class E>
void accumulate_rows(Range range, int64_t rows, const E* left, int64_t left_row, Accumulate<E>* out) {
  using V = Vec<Accumulate<E>>;
  constexpr int kVecs = 4;  // independent sums hide an addition's latency
  for (int64_t i = range.begin; i < range.end; i += kVecs * V::kWidth) {
    CompensatedSum<V> sums[kVecs];
    const auto for_vecs = [&](auto&& f) {
      for (int v = 0; v < kVecs && i + v * V::kWidth < range.end; ++v)
        f(sums[v], i + v * V::kWidth, range.end - i - v * V::kWidth);
    };
    for (int64_t m = 0; m < rows; ++m)
      for_vecs([&](CompensatedSum<V>& sum, int64_t first, int64_t n) {
        sum.add(load_as_vec(left + m * left_row + first, n));
      });
    for_vecs([&](CompensatedSum<V>& sum, int64_t first, int64_t n) {
      store_first(load_first(out + first, n) + sum.value, out + first, n);
    });
  }
}

}  // namespace fastrnn::FASTRNN_ISA
