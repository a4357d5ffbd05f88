// Products with weights of a shorter type than float, which were packed for many calls: few rows wait for the weights
// to arrive, and shorter ones arrive sooner.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/buffer.h"
#include "cpu/micro_kernel.h"
#include "cpu/vec.h"

namespace fastrnn::FASTRNN_ISA {

// --- bfloat16: the sums are those of the micro-kernel on widened weights ---

// Computes out = init + a W^T for one row and panels of pairs, of one width and side by side.
template <int kPanels, int kVecs>
[[gnu::noinline]] void multiply_bfloat16_vecs(const float* a, int64_t depth, const int32_t* pairs, const float* init,
                                              float* out) {
  using V = Vec<float>;
  constexpr int64_t kColumns = kVecs * V::kWidth;
  const int64_t panel_words = (depth + 1) / 2 * kColumns;
  int64_t k = 0;
  do {  // a depth of 0 takes one turn, too: the product is then init
    const bool first = k == 0;
    V sum[kPanels][kVecs];
    const auto for_sums = [&](auto&& f) FASTRNN_LAMBDA {
      FASTRNN_UNROLL(2)
      for (int p = 0; p < kPanels; ++p) {
        FASTRNN_UNROLL(4)
        for (int v = 0; v < kVecs; ++v) f(sum[p][v], p * panel_words + v * V::kWidth, p * kColumns + v * V::kWidth);
      }
    };
    for_sums([&](V& x, int64_t, int64_t column)
                 FASTRNN_LAMBDA { x = init && first ? V::load(init + column) : V(0.0f); });
    const int64_t end = std::min(k + kSumDepth<float>, depth);
    for (; k + 1 < end; k += 2, pairs += kColumns) {
      const V low(a[k]), high(a[k + 1]);
      for_sums([&](V& x, int64_t word, int64_t) FASTRNN_LAMBDA {
        const Words weights = load_words(pairs + word);
        x = mul_add(high, high_bfloat16(weights), mul_add(low, low_bfloat16(weights), x));
      });
    }
    if (k < end) {  // the last pair of an odd depth has one weight
      const V low(a[k++]);
      for_sums([&](V& x, int64_t word, int64_t)
                   FASTRNN_LAMBDA { x = mul_add(low, low_bfloat16(load_words(pairs + word)), x); });
    }
    for_sums([&](V& x, int64_t, int64_t column)
                 FASTRNN_LAMBDA { (first ? x : V::load(out + column) + x).store(out + column); });
  } while (k < depth);
}

template <int kPanels>
void multiply_bfloat16_row(const float* a, int64_t depth, const int32_t* pairs, int64_t vecs, const float* init,
                           float* out) {
  static constexpr std::array kTable{multiply_bfloat16_vecs<kPanels, 1>, multiply_bfloat16_vecs<kPanels, 2>,
                                     multiply_bfloat16_vecs<kPanels, 3>, multiply_bfloat16_vecs<kPanels, 4>};
  static_assert(kTable.size() == kMaxVecs);
  kTable[vecs - 1](a, depth, pairs, init, out);
}

// --- int8: activations become int8, too, and sums are exact, so that every set has the same bits ---

// Rows as multiples of a scale for each, by which its largest magnitude is 127. A row with a value that is not finite
// has the scale NaN.
class Int8Rows {
 public:
  Int8Rows() = default;
  Int8Rows(int64_t rows, const float* a, int64_t a_row, int64_t depth)
      : fours_((depth + 3) / 4), row_(round_up_to_vec<float>(depth)), values_(rows * row_), scales_(rows) {
    for (int64_t r = 0; r < rows; ++r) scales_[r] = round(a + r * a_row, depth, values_.get() + r * row_);
  }

  const int8_t* row(int64_t r) const { return values_.get() + r * row_; }
  float scale(int64_t r) const { return scales_[r]; }
  int64_t fours() const { return fours_; }

 private:
  using V = Vec<float>;

  // Rounds a row, whole vectors of it with zeros at its end, and returns its scale.
  static float round(const float* a, int64_t depth, int8_t* out) {
    V magnitudes(0.0f), zeros(0.0f);  // zeros are NaN after a value that is not finite
    for (int64_t k = 0; k < depth; k += V::kWidth) {
      const V x = load_first(a + k, depth - k);
      magnitudes = max(abs(x), magnitudes);
      zeros = zeros + x * V(0.0f);
    }
    float largest = 0, zero = 0;
    for (int j = 0; j < V::kWidth; ++j) {
      largest = std::max(largest, magnitudes.raw[j]);
      zero += zeros.raw[j];
    }
    const bool finite = zero == 0;
    // 127 / largest is infinite where largest is below 3.8e-37: such a row counts as zero.
    const float inverse = finite && largest > 0 && std::isfinite(127 / largest) ? 127 / largest : 0;
    for (int64_t k = 0; k < depth; k += V::kWidth)
      store_int8(finite ? load_first(a + k, depth - k) * V(inverse) : V(0.0f), out + k);
    return finite ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  }

  int64_t fours_ = 0, row_ = 0;
  Buffer<int8_t> values_;
  Buffer<float> scales_;
};

// A sum of so many fours of products is below 2^31.
constexpr int64_t kExactFours = 1 << 15;
static_assert(4 * kExactFours * 127 * 127 <= std::numeric_limits<int32_t>::max());

// Computes out[r] = init + a[r] W^T for some rows, which share the weights they load, and a panel.
template <bool kDotUnit, int kRows, int kVecs>
[[gnu::noinline]] void multiply_int8_tile(const Int8Rows& a, int64_t first, const int32_t* weights, const float* scales,
                                          const float* init, float* out, int64_t out_row) {
  using V = Vec<float>;
  const int8_t* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = a.row(first + r);
  V total[kRows][kVecs];
  for (auto& row : total) std::fill_n(row, kVecs, V(0.0f));
  for (int64_t begin = 0; begin < a.fours(); begin += kExactFours) {
    Words sum[kRows][kVecs] = {};
    for (int64_t i = begin; i < std::min(begin + kExactFours, a.fours()); ++i, weights += kVecs * V::kWidth) {
      Int8Factor factors[kRows];
      FASTRNN_UNROLL(2)
      for (int r = 0; r < kRows; ++r) factors[r] = Int8Factor(rows[r] + 4 * i);
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) {
        const Words fours = load_words(weights + v * V::kWidth);
        FASTRNN_UNROLL(2)
        for (int r = 0; r < kRows; ++r) sum[r][v] = factors[r].template add_products<kDotUnit>(fours, sum[r][v]);
      }
    }
    FASTRNN_UNROLL(2)
    for (int r = 0; r < kRows; ++r) {
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) total[r][v] = total[r][v] + to_floats(sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) {
      const int64_t j = v * V::kWidth;
      const V scale = V::load(scales + j) * V(a.scale(first + r));
      mul_add(total[r][v], scale, init ? V::load(init + j) : V(0.0f)).store(out + r * out_row + j);
    }
}

template <bool kDotUnit, int kRows>
void multiply_int8_rows(const Int8Rows& a, int64_t first, const int32_t* weights, int64_t vecs, const float* scales,
                        const float* init, float* out, int64_t out_row) {
  static constexpr std::array kTable{multiply_int8_tile<kDotUnit, kRows, 1>, multiply_int8_tile<kDotUnit, kRows, 2>,
                                     multiply_int8_tile<kDotUnit, kRows, 3>, multiply_int8_tile<kDotUnit, kRows, 4>};
  static_assert(kTable.size() == kMaxVecs);
  kTable[vecs - 1](a, first, weights, scales, init, out + first * out_row, out_row);
}

// The same for all rows.
template <bool kDotUnit>
void multiply_int8(int64_t rows, const Int8Rows& a, const int32_t* weights, int64_t vecs, const float* scales,
                   const float* init, float* out, int64_t out_row) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) multiply_int8_rows<kDotUnit, 2>(a, r, weights, vecs, scales, init, out, out_row);
  if (r < rows) multiply_int8_rows<kDotUnit, 1>(a, r, weights, vecs, scales, init, out, out_row);
}

[[gnu::noinline]] inline void multiply_int8(int64_t rows, const Int8Rows& a, const int32_t* weights, int64_t vecs,
                                            const float* scales, const float* init, float* out, int64_t out_row) {
  if constexpr (kMayHaveDotUnit)
    if (has_dot_unit()) return multiply_int8<true>(rows, a, weights, vecs, scales, init, out, out_row);
  multiply_int8<false>(rows, a, weights, vecs, scales, init, out, out_row);
}

}  // namespace fastrnn::FASTRNN_ISA
