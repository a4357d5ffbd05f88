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
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) f(sum[p][v], p * panel_words + v * V::kWidth, p * kColumns + v * V::kWidth);
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

// --- int8: activations become int16, whose rounding is 256 times finer than that of the weights ---

// Rows as multiples of a scale for each, by which its largest magnitude is 32767. A row with a value that is not finite
// has the scale NaN.
class Int16Rows {
 public:
  Int16Rows() = default;
  Int16Rows(int64_t rows, const float* a, int64_t a_row, int64_t depth)
      : fours_((depth + 3) / 4), values_(rows * 4 * fours_), scales_(rows) {
    for (int64_t r = 0; r < rows; ++r) scales_[r] = round(a + r * a_row, depth, values_.get() + r * 4 * fours_);
  }

  // Returns for each four k the pairs (k, k + 2) and (k + 1, k + 3), as even_int8 and odd_int8 give the weights.
  const int16_t* row(int64_t r) const { return values_.get() + r * 4 * fours_; }
  float scale(int64_t r) const { return scales_[r]; }
  int64_t fours() const { return fours_; }

 private:
  static float round(const float* a, int64_t depth, int16_t* out) {
    float largest = 0, zero = 0;  // zero is NaN after a value that is not finite
    for (int64_t k = 0; k < depth; ++k) {
      largest = std::max(largest, std::abs(a[k]));
      zero += a[k] * 0;
    }
    const float scale = zero == 0 ? largest / 32767 : std::numeric_limits<float>::quiet_NaN();
    const float inverse = zero == 0 && largest > 0 ? 32767 / largest : 0;
    std::fill_n(out, (depth + 3) / 4 * 4, int16_t{0});
    constexpr int kPlace[] = {0, 2, 1, 3};
    // 32767 / largest is infinite where largest is below 9.6e-35: such a row counts as zero.
    for (int64_t k = 0; k < depth && std::isfinite(inverse) && inverse > 0; ++k)
      out[k / 4 * 4 + kPlace[k % 4]] = static_cast<int16_t>(std::nearbyint(a[k] * inverse));
    return scale;
  }

  int64_t fours_ = 0;
  Buffer<int16_t> values_;
  Buffer<float> scales_;
};

// Integers of kSumDepth products are summed exactly: 128 * 127 * 32767 is below 2^31.
static_assert(kSumDepth<float> * 127 * 32767 <= std::numeric_limits<int32_t>::max());

// Computes out[r] = init + a[r] W^T for some rows, which share the widened weights, and a panel.
template <int kRows, int kVecs>
[[gnu::noinline]] void multiply_int8_tile(const Int16Rows& a, int64_t first, const int32_t* weights,
                                          const float* scales, const float* init, float* out, int64_t out_row) {
  using V = Vec<float>;
  constexpr int64_t kFours = kSumDepth<float> / 4;
  const int16_t* rows[kRows];
  for (int r = 0; r < kRows; ++r) rows[r] = a.row(first + r);
  V total[kRows][kVecs];
  for (auto& row : total) std::fill_n(row, kVecs, V(0.0f));
  for (int64_t begin = 0; begin < a.fours(); begin += kFours) {
    Words sum[kRows][kVecs] = {};
    for (int64_t i = begin; i < std::min(begin + kFours, a.fours()); ++i, weights += kVecs * V::kWidth) {
      Words even[kRows], odd[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        even[r] = broadcast_word(rows[r] + 4 * i);
        odd[r] = broadcast_word(rows[r] + 4 * i + 2);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        const Words fours = load_words(weights + v * V::kWidth);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r)
          sum[r][v] += multiply_int16s(even_int8(fours), even[r]) + multiply_int16s(odd_int8(fours), odd[r]);
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) total[r][v] = total[r][v] + to_floats(sum[r][v]);
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) {
      const int64_t j = v * V::kWidth;
      const V scale = V::load(scales + j) * V(a.scale(first + r));
      mul_add(total[r][v], scale, init ? V::load(init + j) : V(0.0f)).store(out + r * out_row + j);
    }
}

// The same for all rows.
inline void multiply_int8(int64_t rows, const Int16Rows& a, const int32_t* weights, int64_t vecs, const float* scales,
                          const float* init, float* out, int64_t out_row) {
  static constexpr std::array kSingles{multiply_int8_tile<1, 1>, multiply_int8_tile<1, 2>, multiply_int8_tile<1, 3>,
                                       multiply_int8_tile<1, 4>};
  static constexpr std::array kDoubles{multiply_int8_tile<2, 1>, multiply_int8_tile<2, 2>, multiply_int8_tile<2, 3>,
                                       multiply_int8_tile<2, 4>};
  static_assert(kSingles.size() == kMaxVecs);
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) kDoubles[vecs - 1](a, r, weights, scales, init, out + r * out_row, out_row);
  if (r < rows) kSingles[vecs - 1](a, r, weights, scales, init, out + r * out_row, out_row);
}

}  // namespace fastrnn::FASTRNN_ISA
