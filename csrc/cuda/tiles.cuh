// What all kernels share: the arithmetic type of the cells, conversions, and products of weight tiles with states.
//
// Weights stay in registers as fragments of the matrix instruction, and states are stored in the order in which its
// lanes read them, so nothing is rearranged between two steps.
#pragma once

#include <cstdint>

#include "cells/math.h"
#include "cuda/plan.h"
#include "dtypes.h"

#define FASTRNN_DEVICE __device__ __forceinline__

namespace fastrnn::cuda {

// A scalar with the operations that cells use. kApproximate: exponentials come from the special function unit, which is
// exact enough for half types.
template <class A, bool kApproximate>
struct Real {
  using Scalar = A;
  static constexpr bool kApproximates = kApproximate;
  A x;

  Real() = default;
  FASTRNN_DEVICE Real(A value) : x(value) {}

  FASTRNN_DEVICE friend Real operator+(Real a, Real b) { return a.x + b.x; }
  FASTRNN_DEVICE friend Real operator-(Real a, Real b) { return a.x - b.x; }
  FASTRNN_DEVICE friend Real operator*(Real a, Real b) { return a.x * b.x; }
  FASTRNN_DEVICE friend Real operator-(Real a) { return -a.x; }
  FASTRNN_DEVICE friend bool operator<(Real a, Real b) { return a.x < b.x; }
  FASTRNN_DEVICE friend bool operator<=(Real a, Real b) { return a.x <= b.x; }
  FASTRNN_DEVICE friend Real select(bool condition, Real a, Real b) { return condition ? a.x : b.x; }
  FASTRNN_DEVICE friend Real max(Real a, Real b) { return a.x > b.x ? a.x : b.x; }
  FASTRNN_DEVICE friend Real min(Real a, Real b) { return a.x < b.x ? a.x : b.x; }
  FASTRNN_DEVICE friend Real abs(Real a) { return a.x < 0 ? -a.x : a.x; }
  FASTRNN_DEVICE friend Real mul_add(Real a, Real b, Real c) { return fused(a.x, b.x, c.x); }
  FASTRNN_DEVICE friend Real neg_mul_add(Real a, Real b, Real c) { return fused(-a.x, b.x, c.x); }
  FASTRNN_DEVICE friend Real exact_neg_mul_add(Real a, Real b, Real c) { return fused(-a.x, b.x, c.x); }
  FASTRNN_DEVICE friend Real copy_sign(Real magnitude, Real sign) {
    if constexpr (sizeof(A) == 4)
      return ::copysignf(magnitude.x, sign.x);
    else
      return ::copysign(magnitude.x, sign.x);
  }

  static constexpr A kToExponent = sizeof(A) == 4 ? A(0x1.8p23 + 127) : A(0x1.8p52 + 1023);
  FASTRNN_DEVICE friend Real exponent_from_mantissa(Real shifted) {
    if constexpr (sizeof(A) == 4)
      return __int_as_float(__float_as_int(shifted.x) << 23);
    else
      return __longlong_as_double(__double_as_longlong(shifted.x) << 52);
  }
  FASTRNN_DEVICE friend Real reciprocal(Real a) {
    if constexpr (sizeof(A) == 4) {
      float inverse;
      asm("rcp.approx.f32 %0, %1;" : "=f"(inverse) : "f"(a.x));
      return inverse;
    } else {
      return __drcp_rn(a.x);
    }
  }
  // 2^x to 2 ulp
  FASTRNN_DEVICE friend Real approximate_exp2(Real a) {
    static_assert(sizeof(A) == 4);
    float power;
    asm("ex2.approx.f32 %0, %1;" : "=f"(power) : "f"(a.x));
    return power;
  }

 private:
  FASTRNN_DEVICE static A fused(A a, A b, A c) {
    if constexpr (sizeof(A) == 4)
      return __fmaf_rn(a, b, c);
    else
      return __fma_rn(a, b, c);
  }
};

// The arithmetic type for a storage type: the two half types compute in float, and approximate.
template <class S>
using RealOf = Real<Accumulate<S>, sizeof(S) == 2>;

// --- storage -------------------------------------------------------------------------------------

template <class S>
FASTRNN_DEVICE Accumulate<S> load(S value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    return __uint_as_float(uint32_t{value.bits} << 16);
  } else if constexpr (std::is_same_v<S, Half>) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
  } else {
    return value;
  }
}

// Rounded to nearest; a NaN becomes the canonical one of its type.
template <class S>
FASTRNN_DEVICE S store(Accumulate<S> value) {
  if constexpr (std::is_same_v<S, BFloat16>) {
#if __CUDA_ARCH__ >= 800
    BFloat16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
    return narrow;
#else
    return to_bfloat16(value);
#endif
  } else if constexpr (std::is_same_v<S, Half>) {
    Half narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
    return narrow;
  } else {
    return value;
  }
}

// --- words: what a product multiplies by, 32 bits at a time ---------------------------------------

// Marks a word that has not arrived. No published word has these bits, since factor() makes every NaN canonical.
constexpr uint32_t kNotYet = 0xffffffff;

// Converts a value to the format that a product multiplies: the low 16 bits of a word, or all 32.
template <Precision kPrecision>
FASTRNN_DEVICE uint32_t factor(float value) {
  if constexpr (kPrecision == Precision::kHalf) {
    return store<Half>(value).bits;
  } else if constexpr (kPrecision == Precision::kBFloat16) {
    return store<BFloat16>(value).bits;
  } else {
    uint32_t bits = __float_as_uint(value);
#if __CUDA_ARCH__ >= 800
    if constexpr (kPrecision == Precision::kTf32) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
    return value != value ? 0x7fffffff : bits;
  }
}

// --- tiles: 16 rows of weights times 8 columns of states -------------------------------------------
//
// Lane 4 g + j of a warp holds rows g and g + 8 of a fragment, and columns 2 j and 2 j + 1 of rows g and g + 8 of a
// product (PTX ISA, mma.m16n8k16 and mma.m16n8k8). A k-step is 8 words deep; lane j reads its words j and j + 4. A lane
// reads two k-steps, a pair, at once.

struct Lane {
  int g, j;
  FASTRNN_DEVICE static Lane current() {
    const int lane = threadIdx.x % kLanes;
    return {lane / 4, lane % 4};
  }
};

template <Precision kPrecision>
struct Tile {
  static constexpr bool kTensorCores = kPrecision != Precision::kFloat;
  static constexpr int kPairWords = 16 * kTileColumns;
  // A lane reads a pair in this many vectors of 16 bytes.
  static constexpr int kVectors = kTensorCores ? 1 : 8;

  struct Weights {
    uint32_t word[2][4];  // [k-step][rows g, g + 8 of word j, then of word j + 4]
  };
  struct Sums {
    float value[kTensorCores ? 4 : 16] = {};
  };

  // Returns the index of word `depth` of a column within its column tile.
  FASTRNN_DEVICE static int word_index(int depth, int column) {
    const int step = depth / 8, word = depth % 8;
    if constexpr (kTensorCores)
      return step / 2 * kPairWords + (column * 4 + word % 4) * 4 + step % 2 * 2 + word / 4;
    else
      return step * 8 * kTileColumns + word * kTileColumns + column;
  }
  // Returns the index of the first word of this lane's vector.
  FASTRNN_DEVICE static int vector_index(int pair, int vector) {
    const auto [g, j] = Lane::current();
    if constexpr (kTensorCores) {
      return pair * kPairWords + (g * 4 + j) * 4;
    } else {
      const int step = 2 * pair + vector / 4, word = j + vector % 4 / 2 * 4;
      return step * 8 * kTileColumns + word * kTileColumns + vector % 2 * 4;
    }
  }

  FASTRNN_DEVICE static void multiply(Sums& sums, const Weights& weights, const uint4 (&states)[kVectors]) {
    if constexpr (kTensorCores) {
      multiply_step(sums, weights.word[0], states[0].x, states[0].y);
      multiply_step(sums, weights.word[1], states[0].z, states[0].w);
    } else {
#pragma unroll
      for (int vector = 0; vector < kVectors; ++vector) {
        const uint32_t columns[4] = {states[vector].x, states[vector].y, states[vector].z, states[vector].w};
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const float weight = __uint_as_float(weights.word[vector / 4][vector % 4 / 2 * 2 + row]);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float& sum = sums.value[row * 8 + vector % 2 * 4 + n];
            sum = __fmaf_rn(weight, __uint_as_float(columns[n]), sum);
          }
        }
      }
    }
  }

  // Returns this lane's four values of the product: row g of columns 2 j and 2 j + 1, then row g + 8.
  FASTRNN_DEVICE static void finish(Sums& sums, float (&part)[4]) {
    if constexpr (kTensorCores) {
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i] = sums.value[i];
    } else {
      // The four lanes of a row hold sums of all 8 columns, each over its own words. Each round of exchange halves the
      // columns that a lane sums, from 8 to 2.
      const int j = Lane::current().j;
      float half[8];
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float low = sums.value[row * 8 + n], high = sums.value[row * 8 + 4 + n];
          const float received = __shfl_xor_sync(~0u, j & 2 ? low : high, 2);
          half[row * 4 + n] = (j & 2 ? high : low) + received;
        }
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float low = half[row * 4 + n], high = half[row * 4 + 2 + n];
          const float received = __shfl_xor_sync(~0u, j & 1 ? low : high, 1);
          part[row * 2 + n] = (j & 1 ? high : low) + received;
        }
    }
  }

 private:
  FASTRNN_DEVICE static void multiply_step(Sums& sums, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    float (&c)[4] = sums.value;
    if constexpr (kPrecision == Precision::kHalf)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else if constexpr (kPrecision == Precision::kBFloat16)
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
      asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
};

// Returns word `depth` of a row of weights. weight(k) returns the row's element k, 0 past the last one.
template <Precision kPrecision, class Weight>
FASTRNN_DEVICE uint32_t weight_word(int depth, Weight&& weight) {
  if constexpr (kHalfWords<kPrecision>)
    return factor<kPrecision>(weight(2 * depth)) | factor<kPrecision>(weight(2 * depth + 1)) << 16;
  else
    return factor<kPrecision>(weight(depth));
}

// Loads this lane's weights of a pair; weight(row of the tile, k) returns one element.
template <Precision kPrecision, class Weight>
FASTRNN_DEVICE typename Tile<kPrecision>::Weights load_weights(int pair, Weight&& weight) {
  const auto [g, j] = Lane::current();
  typename Tile<kPrecision>::Weights fragment;
#pragma unroll
  for (int step = 0; step < 2; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int depth = (2 * pair + step) * 8 + j + i / 2 * 4;
      fragment.word[step][i] = weight_word<kPrecision>(depth, [&](int k) { return weight(g + i % 2 * 8, k); });
    }
  return fragment;
}

// Writes a unit's value by write(word within the group, bits). In half precision a word holds two neighbouring units,
// whose lanes are 4 apart; the lane of the even unit writes both.
template <Precision kPrecision, class Write>
FASTRNN_DEVICE void publish(float value, int unit_in_group, Write&& write) {
  const uint32_t bits = factor<kPrecision>(value);
  if constexpr (kHalfWords<kPrecision>) {
    const uint32_t neighbour = __shfl_xor_sync(~0u, bits, 4);
    if (unit_in_group % 2 == 0) write(unit_in_group / 2, bits | neighbour << 16);
  } else {
    write(unit_in_group, bits);
  }
}

}  // namespace fastrnn::cuda
