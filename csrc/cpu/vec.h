// Vec<A>: one SIMD register of floats or doubles, for the instruction set this file is compiled for.
//
// Arithmetic comes from the compiler's vector extension; only what it cannot say (fused multiply-add, masked access,
// half conversions) is written per instruction set. Included by cpu/isa_*.cpp alone, after they name the instruction
// set in FASTRNN_ISA; everything lives in a namespace of that name, so no two sets share a symbol.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cells/dual.h"
#include "cells/math.h"
#include "cpu/isa.h"
#include "dtypes.h"

namespace fastrnn::FASTRNN_ISA {

// A tile's sums fill so many of the registers. The others hold a panel's vectors, and factors that are loaded ahead.
#if defined(FASTRNN_ISA_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32, kSumRegisters = 27;
#elif defined(FASTRNN_ISA_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16, kSumRegisters = 12;
#elif defined(FASTRNN_ISA_NEON)  // a factor is loaded ahead for each row of a tile: with 24 sums, gcc 12 spills some
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32, kSumRegisters = 20;
#else                            // 16 bytes are native or cheap to emulate everywhere
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16, kSumRegisters = 12;
#endif

// The compiler's vector types: values, and integers of the same width for masks and bit patterns.
template <class A>
struct Registers;

template <>
struct Registers<float> {
  typedef float Values __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <>
struct Registers<double> {
  typedef double Values __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

// Lane i of the result is lane kIndices[i] of the two vectors side by side.
template <int... kIndices, class Raw>
FASTRNN_FN Raw lanes_of(Raw a, Raw b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndices...);
#else  // g++ 11 knows no other
  using Bits = decltype(a < b);
  return __builtin_shuffle(a, b, Bits{kIndices...});
#endif
}

template <class A>
struct Vec {
  using Scalar = A;
  using Raw = typename Registers<A>::Values;
  using RawBits = typename Registers<A>::Bits;
  static constexpr int kWidth = kVectorBytes / sizeof(A);

  struct Mask {
    RawBits raw;  // all ones where true
  };

  Raw raw;

  Vec() = default;
  FASTRNN_FN explicit Vec(Raw r) : raw(r) {}
  // All lanes equal; implicit, so that formulas read as written.
  FASTRNN_FN Vec(A scalar) : raw(scalar - Raw{}) {}

  FASTRNN_FN static Vec load(const A* p) {
    Vec v;
    std::memcpy(&v.raw, p, sizeof v.raw);
    return v;
  }
  FASTRNN_FN void store(A* p) const { std::memcpy(p, &raw, sizeof raw); }

  FASTRNN_FN friend Vec operator+(Vec a, Vec b) { return Vec(a.raw + b.raw); }
  FASTRNN_FN friend Vec operator-(Vec a, Vec b) { return Vec(a.raw - b.raw); }
  FASTRNN_FN friend Vec operator*(Vec a, Vec b) { return Vec(a.raw * b.raw); }
  FASTRNN_FN friend Vec operator/(Vec a, Vec b) { return Vec(a.raw / b.raw); }
  FASTRNN_FN friend Vec operator-(Vec a) { return Vec(-a.raw); }
  FASTRNN_FN friend Mask operator<(Vec a, Vec b) { return {a.raw < b.raw}; }
  FASTRNN_FN friend Mask operator<=(Vec a, Vec b) { return {a.raw <= b.raw}; }
  FASTRNN_FN friend Mask operator>(Vec a, Vec b) { return b < a; }
  FASTRNN_FN friend Mask operator>=(Vec a, Vec b) { return b <= a; }
  FASTRNN_FN friend Mask operator==(Vec a, Vec b) { return {a.raw == b.raw}; }
  FASTRNN_FN friend Mask operator!=(Vec a, Vec b) { return {a.raw != b.raw}; }

  FASTRNN_FN friend Vec select(Mask m, Vec a, Vec b) { return Vec(m.raw ? a.raw : b.raw); }
  FASTRNN_FN friend Vec abs(Vec x) { return Vec((Raw)((RawBits)x.raw & ~sign_bit())); }
  FASTRNN_FN friend Vec copy_sign(Vec magnitude, Vec sign) {
    return Vec((Raw)(((RawBits)magnitude.raw & ~sign_bit()) | ((RawBits)sign.raw & sign_bit())));
  }
  // 1.5 * 2^(mantissa bits): adding it leaves the nearest integer in the low bits of the mantissa, biased as an
  // exponent with kToExponent.
  static constexpr int kMantissaBits = sizeof(A) == 4 ? 23 : 52;
  static constexpr A kToInteger = sizeof(A) == 4 ? A(0x1.8p23) : A(0x1.8p52);
  static constexpr A kToExponent = kToInteger + A(sizeof(A) == 4 ? 127 : 1023);
  FASTRNN_FN friend Vec exponent_from_mantissa(Vec shifted) {
    const RawBits bits = (RawBits)shifted.raw << kMantissaBits;
    return Vec((Raw)bits);
  }
  // x = mantissa(x) * 2^exponent(x), with a mantissa in [sqrt(1/2), sqrt(2)), for a normal x > 0.
  FASTRNN_FN friend Vec exponent(Vec x) {
    return Vec((Raw)(exponent_bits(x) + (RawBits)Vec(kToInteger).raw)) - Vec(kToInteger);
  }
  FASTRNN_FN friend Vec mantissa(Vec x) { return Vec((Raw)((RawBits)x.raw - (exponent_bits(x) << kMantissaBits))); }

 private:
  // The exponent as an integer: the bits of numbers are ordered as they are, and a power of two more is a carry more.
  FASTRNN_FN static RawBits exponent_bits(Vec x) {
    const Vec least_mantissa(A(0x1.6a09e667f3bcdp-1));  // sqrt(1/2)
    return ((RawBits)x.raw - (RawBits)least_mantissa.raw) >> kMantissaBits;
  }
  FASTRNN_FN static RawBits sign_bit() { return (RawBits)(-Raw{}); }
};

// A vector of dual numbers: their values, and their tangents.
template <class A>
struct Vec<Dual<A>> : DualArithmetic<Vec<Dual<A>>> {
  using Scalar = A;
  using Mask = typename Vec<A>::Mask;
  static constexpr int kWidth = Vec<A>::kWidth;

  Vec<A> value;
  Vec<A> tangent;

  Vec() = default;
  FASTRNN_FN Vec(Vec<A> v, Vec<A> t) : value(v), tangent(t) {}
  FASTRNN_FN Vec(A scalar) : value(scalar), tangent(A(0)) {}
  FASTRNN_FN Vec(Dual<A> scalar) : value(scalar.value), tangent(scalar.tangent) {}
  FASTRNN_FN static Vec join(Vec<A> v, Vec<A> t) { return {v, t}; }

  FASTRNN_FN static Vec load(const Dual<A>* p) {
    const A* numbers = reinterpret_cast<const A*>(p);
    return from_pairs(Vec<A>::load(numbers), Vec<A>::load(numbers + kWidth));
  }
  FASTRNN_FN void store(Dual<A>* p) const {
    A* numbers = reinterpret_cast<A*>(p);
    low_pairs().store(numbers);
    high_pairs().store(numbers + kWidth);
  }

  // Converts from and to the layout in memory, where each value is followed by its tangent.
  FASTRNN_FN static Vec from_pairs(Vec<A> low, Vec<A> high) {
    return {shuffle<[](int i) { return 2 * i; }>(low, high), shuffle<[](int i) { return 2 * i + 1; }>(low, high)};
  }
  FASTRNN_FN Vec<A> low_pairs() const {
    return shuffle<[](int i) { return i / 2 + i % 2 * kWidth; }>(value, tangent);
  }
  FASTRNN_FN Vec<A> high_pairs() const {
    return shuffle<[](int i) { return (kWidth + i) / 2 + i % 2 * kWidth; }>(value, tangent);
  }

  FASTRNN_FN friend Mask operator<(Vec a, Vec b) { return a.value < b.value; }
  FASTRNN_FN friend Mask operator<=(Vec a, Vec b) { return a.value <= b.value; }
  FASTRNN_FN friend Mask operator>(Vec a, Vec b) { return a.value > b.value; }
  FASTRNN_FN friend Mask operator>=(Vec a, Vec b) { return a.value >= b.value; }
  FASTRNN_FN friend Mask operator==(Vec a, Vec b) { return a.value == b.value; }
  FASTRNN_FN friend Mask operator!=(Vec a, Vec b) { return a.value != b.value; }
  FASTRNN_FN friend Vec select(Mask m, Vec a, Vec b) {
    return {select(m, a.value, b.value), select(m, a.tangent, b.tangent)};
  }
  FASTRNN_FN friend Vec<A> value(Vec x) { return x.value; }
  FASTRNN_FN friend Vec<A> tangent(Vec x) { return x.tangent; }

 private:
  // Lane i is lane kSource(i) of the two vectors side by side.
  template <auto kSource>
  FASTRNN_FN static Vec<A> shuffle(Vec<A> a, Vec<A> b) {
    return [&]<int... kLane>(std::integer_sequence<int, kLane...>) FASTRNN_LAMBDA {
      return Vec<A>(lanes_of<kSource(kLane)...>(a.raw, b.raw));
    }(std::make_integer_sequence<int, kWidth>{});
  }
};

// mul_add is a * b + c, neg_mul_add is c - a * b. max and min return b if either is NaN.
#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<float> neg_mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fnmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> neg_mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fnmadd_pd(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<float> max(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_max_ps(a.raw, b.raw)); }
FASTRNN_FN Vec<double> max(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_max_pd(a.raw, b.raw)); }
FASTRNN_FN Vec<float> min(Vec<float> a, Vec<float> b) { return Vec<float>(_mm512_min_ps(a.raw, b.raw)); }
FASTRNN_FN Vec<double> min(Vec<double> a, Vec<double> b) { return Vec<double>(_mm512_min_pd(a.raw, b.raw)); }
#elif defined(FASTRNN_ISA_AVX2)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<float> neg_mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fnmadd_ps(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<double> neg_mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fnmadd_pd(a.raw, b.raw, c.raw));
}
FASTRNN_FN Vec<float> max(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_max_ps(a.raw, b.raw)); }
FASTRNN_FN Vec<double> max(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_max_pd(a.raw, b.raw)); }
FASTRNN_FN Vec<float> min(Vec<float> a, Vec<float> b) { return Vec<float>(_mm256_min_ps(a.raw, b.raw)); }
FASTRNN_FN Vec<double> min(Vec<double> a, Vec<double> b) { return Vec<double>(_mm256_min_pd(a.raw, b.raw)); }
#else
#if defined(FASTRNN_ISA_NEON)
FASTRNN_FN Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmaq_f32(c.raw, a.raw, b.raw));
}
FASTRNN_FN Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmaq_f64(c.raw, a.raw, b.raw));
}
FASTRNN_FN Vec<float> neg_mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(vfmsq_f32(c.raw, a.raw, b.raw));
}
FASTRNN_FN Vec<double> neg_mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(vfmsq_f64(c.raw, a.raw, b.raw));
}
#else
template <class A>
FASTRNN_FN Vec<A> mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return a * b + c;
}
template <class A>
FASTRNN_FN Vec<A> neg_mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
  return c - a * b;
}
#endif
template <class A>
FASTRNN_FN Vec<A> max(Vec<A> a, Vec<A> b) {
  return Vec<A>(a.raw > b.raw ? a.raw : b.raw);
}
template <class A>
FASTRNN_FN Vec<A> min(Vec<A> a, Vec<A> b) {
  return Vec<A>(a.raw < b.raw ? a.raw : b.raw);
}
#endif

// c - a * b with one rounding. Without a fused instruction it is computed lane by lane.
template <class A>
FASTRNN_FN Vec<A> exact_neg_mul_add(Vec<A> a, Vec<A> b, Vec<A> c) {
#if defined(FASTRNN_ISA_AVX512) || defined(FASTRNN_ISA_AVX2) || defined(FASTRNN_ISA_NEON)
  return neg_mul_add(a, b, c);
#else
  for (int j = 0; j < Vec<A>::kWidth; ++j) c.raw[j] = std::fma(-a.raw[j], b.raw[j], c.raw[j]);
  return c;
#endif
}

template <class A>
FASTRNN_FN Vec<A> square_root(Vec<A> x) {
#if defined(FASTRNN_ISA_AVX512)
  if constexpr (sizeof(A) == 4)
    return Vec<A>(_mm512_sqrt_ps(x.raw));
  else
    return Vec<A>(_mm512_sqrt_pd(x.raw));
#elif defined(FASTRNN_ISA_AVX2)
  if constexpr (sizeof(A) == 4)
    return Vec<A>(_mm256_sqrt_ps(x.raw));
  else
    return Vec<A>(_mm256_sqrt_pd(x.raw));
#elif defined(FASTRNN_ISA_NEON)
  if constexpr (sizeof(A) == 4)
    return Vec<A>(vsqrtq_f32(x.raw));
  else
    return Vec<A>(vsqrtq_f64(x.raw));
#else
  for (int j = 0; j < Vec<A>::kWidth; ++j) x.raw[j] = std::sqrt(x.raw[j]);
  return x;
#endif
}

// 1 / x to 13 bits or more. Floats take an estimate, which is faster than a division, where an instruction gives one.
template <class A>
FASTRNN_FN Vec<A> reciprocal(Vec<A> x) {
#if defined(FASTRNN_ISA_AVX512)
  if constexpr (sizeof(A) == 4) return Vec<A>(_mm512_rcp14_ps(x.raw));
#elif defined(FASTRNN_ISA_AVX2)
  if constexpr (sizeof(A) == 4) {  // 11 bits, which one step of Newton's method doubles
    const Vec<A> estimate(_mm256_rcp_ps(x.raw));
    return mul_add(estimate, neg_mul_add(estimate, x, Vec<A>(A(1))), estimate);
  }
#elif defined(FASTRNN_ISA_NEON)
  if constexpr (sizeof(A) == 4) {  // 8 bits, which one step of Newton's method doubles
    const auto estimate = vrecpeq_f32(x.raw);
    return Vec<A>(estimate * vrecpsq_f32(x.raw, estimate));
  }
#endif
  return A(1) / x;
}

// Several vectors as one value: a formula runs on all of them side by side, which hides its latency.
template <class V, int kParts>
struct Bundle {
  using Scalar = typename V::Scalar;
  struct Mask {
    typename V::Mask part[kParts];
  };
  static constexpr Scalar kToExponent = [] {
    if constexpr (requires { V::kToExponent; })
      return V::kToExponent;
    else
      return Scalar(0);  // dual numbers have no exponentials of their own
  }();

  V part[kParts];

  Bundle() = default;
  FASTRNN_FN Bundle(Scalar scalar) {
    for (V& p : part) p = V(scalar);
  }
  template <class F>
  FASTRNN_FN static Bundle of(F&& f) {
    Bundle out;
    FASTRNN_UNROLL(8)
    for (int i = 0; i < kParts; ++i) out.part[i] = f(i);
    return out;
  }

  FASTRNN_FN friend Bundle operator+(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return a.part[i] + b.part[i]; });
  }
  FASTRNN_FN friend Bundle operator-(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return a.part[i] - b.part[i]; });
  }
  FASTRNN_FN friend Bundle operator*(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return a.part[i] * b.part[i]; });
  }
  FASTRNN_FN friend Bundle operator/(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return a.part[i] / b.part[i]; });
  }
  FASTRNN_FN friend Bundle operator-(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return -a.part[i]; });
  }
  FASTRNN_FN friend Mask operator<(Bundle a, Bundle b) {
    return mask_of([&](int i) FASTRNN_LAMBDA { return a.part[i] < b.part[i]; });
  }
  FASTRNN_FN friend Mask operator<=(Bundle a, Bundle b) {
    return mask_of([&](int i) FASTRNN_LAMBDA { return a.part[i] <= b.part[i]; });
  }
  FASTRNN_FN friend Mask operator>(Bundle a, Bundle b) { return b < a; }
  FASTRNN_FN friend Mask operator>=(Bundle a, Bundle b) { return b <= a; }
  FASTRNN_FN friend Mask operator==(Bundle a, Bundle b) {
    return mask_of([&](int i) FASTRNN_LAMBDA { return a.part[i] == b.part[i]; });
  }
  FASTRNN_FN friend Mask operator!=(Bundle a, Bundle b) {
    return mask_of([&](int i) FASTRNN_LAMBDA { return a.part[i] != b.part[i]; });
  }
  FASTRNN_FN friend Bundle mul_add(Bundle a, Bundle b, Bundle c) {
    return of([&](int i) FASTRNN_LAMBDA { return mul_add(a.part[i], b.part[i], c.part[i]); });
  }
  FASTRNN_FN friend Bundle neg_mul_add(Bundle a, Bundle b, Bundle c) {
    return of([&](int i) FASTRNN_LAMBDA { return neg_mul_add(a.part[i], b.part[i], c.part[i]); });
  }
  FASTRNN_FN friend Bundle exact_neg_mul_add(Bundle a, Bundle b, Bundle c) {
    return of([&](int i) FASTRNN_LAMBDA { return exact_neg_mul_add(a.part[i], b.part[i], c.part[i]); });
  }
  FASTRNN_FN friend Bundle select(Mask m, Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return select(m.part[i], a.part[i], b.part[i]); });
  }
  FASTRNN_FN friend Bundle max(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return max(a.part[i], b.part[i]); });
  }
  FASTRNN_FN friend Bundle min(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return min(a.part[i], b.part[i]); });
  }
  FASTRNN_FN friend Bundle abs(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return abs(a.part[i]); });
  }
  FASTRNN_FN friend Bundle copy_sign(Bundle a, Bundle b) {
    return of([&](int i) FASTRNN_LAMBDA { return copy_sign(a.part[i], b.part[i]); });
  }
  FASTRNN_FN friend Bundle exponent_from_mantissa(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return exponent_from_mantissa(a.part[i]); });
  }
  FASTRNN_FN friend Bundle exponent(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return exponent(a.part[i]); });
  }
  FASTRNN_FN friend Bundle mantissa(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return mantissa(a.part[i]); });
  }
  FASTRNN_FN friend Bundle square_root(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return square_root(a.part[i]); });
  }
  FASTRNN_FN friend Bundle reciprocal(Bundle a) {
    return of([&](int i) FASTRNN_LAMBDA { return reciprocal(a.part[i]); });
  }

  // These exist for dual numbers only.
  template <class W>
  FASTRNN_FN static Bundle join(Bundle<W, kParts> values, Bundle<W, kParts> tangents) {
    return of([&](int i) FASTRNN_LAMBDA { return V::join(values.part[i], tangents.part[i]); });
  }
  FASTRNN_FN friend auto value(Bundle a)
    requires math::OverDuals<V>
  {
    return Bundle<Vec<Scalar>, kParts>::of([&](int i) FASTRNN_LAMBDA { return value(a.part[i]); });
  }
  FASTRNN_FN friend auto tangent(Bundle a)
    requires math::OverDuals<V>
  {
    return Bundle<Vec<Scalar>, kParts>::of([&](int i) FASTRNN_LAMBDA { return tangent(a.part[i]); });
  }

 private:
  template <class F>
  FASTRNN_FN static Mask mask_of(F&& f) {
    Mask out;
    FASTRNN_UNROLL(8)
    for (int i = 0; i < kParts; ++i) out.part[i] = f(i);
    return out;
  }
};

// The first n <= width lanes of a vector, the others 0. load_first and store_first take any n.
#if defined(FASTRNN_ISA_AVX512)
FASTRNN_FN Vec<float> load_lanes(const float* p, int64_t n) {
  return Vec<float>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
}
FASTRNN_FN Vec<double> load_lanes(const double* p, int64_t n) {
  return Vec<double>(_mm512_maskz_loadu_pd((1u << n) - 1, p));
}
FASTRNN_FN void store_lanes(Vec<float> v, float* p, int64_t n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, v.raw); }
FASTRNN_FN void store_lanes(Vec<double> v, double* p, int64_t n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, v.raw); }
#elif defined(FASTRNN_ISA_AVX2)
template <class A>
FASTRNN_FN __m256i lane_mask(int64_t n) {
  if constexpr (sizeof(A) == 4) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
}
FASTRNN_FN Vec<float> load_lanes(const float* p, int64_t n) {
  return Vec<float>(_mm256_maskload_ps(p, lane_mask<float>(n)));
}
FASTRNN_FN Vec<double> load_lanes(const double* p, int64_t n) {
  return Vec<double>(_mm256_maskload_pd(p, lane_mask<double>(n)));
}
FASTRNN_FN void store_lanes(Vec<float> v, float* p, int64_t n) { _mm256_maskstore_ps(p, lane_mask<float>(n), v.raw); }
FASTRNN_FN void store_lanes(Vec<double> v, double* p, int64_t n) {
  _mm256_maskstore_pd(p, lane_mask<double>(n), v.raw);
}
#else
template <class A>
FASTRNN_FN Vec<A> load_lanes(const A* p, int64_t n) {
  Vec<A> v(A(0));
  std::memcpy(&v.raw, p, n * sizeof(A));
  return v;
}
template <class A>
FASTRNN_FN void store_lanes(Vec<A> v, A* p, int64_t n) {
  std::memcpy(p, &v.raw, n * sizeof(A));
}
#endif

// n dual numbers are 2 n numbers in memory.
template <class A>
FASTRNN_FN Vec<Dual<A>> load_lanes(const Dual<A>* p, int64_t n) {
  constexpr int kWidth = Vec<A>::kWidth;
  const A* numbers = reinterpret_cast<const A*>(p);
  if (2 * n <= kWidth) return Vec<Dual<A>>::from_pairs(load_lanes(numbers, 2 * n), Vec<A>(A(0)));
  return Vec<Dual<A>>::from_pairs(Vec<A>::load(numbers), load_lanes(numbers + kWidth, 2 * n - kWidth));
}
template <class A>
FASTRNN_FN void store_lanes(Vec<Dual<A>> v, Dual<A>* p, int64_t n) {
  constexpr int kWidth = Vec<A>::kWidth;
  A* numbers = reinterpret_cast<A*>(p);
  if (2 * n <= kWidth) return store_lanes(v.low_pairs(), numbers, 2 * n);
  v.low_pairs().store(numbers);
  store_lanes(v.high_pairs(), numbers + kWidth, 2 * n - kWidth);
}

template <class A>
FASTRNN_FN Vec<A> load_first(const A* p, int64_t n) {
  return n >= Vec<A>::kWidth ? Vec<A>::load(p) : load_lanes(p, n);
}

template <class A>
FASTRNN_FN void store_first(Vec<A> v, A* p, int64_t n) {
  if (n >= Vec<A>::kWidth)
    v.store(p);
  else
    store_lanes(v, p, n);
}

// Lane i of row j becomes lane j of row i.
template <class A>
FASTRNN_FN void transpose(Vec<A> (&rows)[Vec<A>::kWidth]) {
  constexpr int kWidth = Vec<A>::kWidth;
  const auto exchange = [&]<int kStep, int... kLane>(std::integral_constant<int, kStep>,
                                                     std::integer_sequence<int, kLane...>) FASTRNN_LAMBDA {
    FASTRNN_UNROLL(16)
    for (int i = 0; i < kWidth; ++i) {
      if (i & kStep) continue;
      const auto low = rows[i].raw, high = rows[i + kStep].raw;
      rows[i].raw = lanes_of<(kLane & kStep ? kWidth + kLane - kStep : kLane)...>(low, high);
      rows[i + kStep].raw = lanes_of<(kLane & kStep ? kWidth + kLane : kLane + kStep)...>(low, high);
    }
  };
  constexpr auto kLanes = std::make_integer_sequence<int, kWidth>{};
  if constexpr (kWidth > 1) exchange(std::integral_constant<int, 1>{}, kLanes);
  if constexpr (kWidth > 2) exchange(std::integral_constant<int, 2>{}, kLanes);
  if constexpr (kWidth > 4) exchange(std::integral_constant<int, 4>{}, kLanes);
  if constexpr (kWidth > 8) exchange(std::integral_constant<int, 8>{}, kLanes);
}

template <class A>
FASTRNN_FN void transpose(Vec<Dual<A>> (&rows)[Vec<A>::kWidth]) {
  constexpr int kWidth = Vec<A>::kWidth;
  Vec<A> values[kWidth], tangents[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    values[i] = rows[i].value;
    tangents[i] = rows[i].tangent;
  }
  transpose(values);
  transpose(tangents);
  for (int i = 0; i < kWidth; ++i) rows[i] = {values[i], tangents[i]};
}

// Values of a half type, as many as a vector has floats. narrow() rounds to nearest, ties to even.
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

FASTRNN_FN Vec<float> widen(HalfBits bits, BFloat16) {
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  return Vec<float>((Vec<float>::Raw)(__builtin_convertvector(bits, Wide) << 16));
}

FASTRNN_FN HalfBits narrow(Vec<float> v, BFloat16) {
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  const Wide bits = (Wide)v.raw;
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide quiet = (bits >> 16) | 0x40;  // a NaN stays one
  return __builtin_convertvector(v.raw != v.raw ? quiet : rounded, HalfBits);
}

FASTRNN_FN Vec<float> widen(HalfBits bits, Half) {
#if defined(FASTRNN_ISA_AVX512)
  return Vec<float>(_mm512_cvtph_ps((__m256i)bits));
#elif defined(FASTRNN_ISA_AVX2)
  return Vec<float>(_mm256_cvtph_ps((__m128i)bits));
#elif defined(FASTRNN_ISA_NEON)
  return Vec<float>(vcvt_f32_f16((float16x4_t)bits));
#else
  Vec<float> v;
  for (int j = 0; j < Vec<float>::kWidth; ++j) v.raw[j] = to_float(Half{bits[j]});
  return v;
#endif
}

FASTRNN_FN HalfBits narrow(Vec<float> v, Half) {
#if defined(FASTRNN_ISA_AVX512)
  return (HalfBits)_mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FASTRNN_ISA_AVX2)
  return (HalfBits)_mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FASTRNN_ISA_NEON)
  return (HalfBits)vcvt_f16_f32(v.raw);
#else
  HalfBits bits;
  for (int j = 0; j < Vec<float>::kWidth; ++j) bits[j] = to_half(v.raw[j]).bits;
  return bits;
#endif
}

// Words of 32 bits hold pairs of bfloat16, which are widened without a shuffle, or four int8.
using Words = Vec<float>::RawBits;

FASTRNN_FN Words load_words(const int32_t* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

FASTRNN_FN Vec<float> to_floats(Words integers) {
  return Vec<float>(__builtin_convertvector(integers, Vec<float>::Raw));
}

FASTRNN_FN Vec<float> low_bfloat16(Words pairs) { return Vec<float>((Vec<float>::Raw)(pairs << 16)); }
FASTRNN_FN Vec<float> high_bfloat16(Words pairs) { return Vec<float>((Vec<float>::Raw)(pairs & ~0xffff)); }

// Stores the nearest integers, ties to even, of values of at most 127.
FASTRNN_FN void store_int8(Vec<float> values, int8_t* p) {
  typedef int8_t Narrow __attribute__((vector_size(Vec<float>::kWidth)));
  constexpr float kToInteger = 0x1.8p23f;  // its sum with a small number has no digits after the point
  const auto rounded = (values + Vec<float>(kToInteger)) - Vec<float>(kToInteger);
  const Narrow narrow = __builtin_convertvector(__builtin_convertvector(rounded.raw, Words), Narrow);
  std::memcpy(p, &narrow, sizeof narrow);
}

// Later chips have an instruction that adds four products of int8 to a word: AVX512-VNNI, and SDOT of 64-bit Arm.
#if defined(FASTRNN_ISA_AVX512)
constexpr bool kMayHaveDotUnit = true;
inline bool has_dot_unit() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}
#elif defined(FASTRNN_ISA_NEON) && defined(__linux__)
constexpr bool kMayHaveDotUnit = true;
inline bool has_dot_unit() {
  static const bool has = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  return has;
}
#else
constexpr bool kMayHaveDotUnit = false;
inline bool has_dot_unit() { return false; }
#endif

// Four int8, none of them -128, that multiply every word of weights. Instructions of the dot unit are written as
// assembly: the file is compiled for chips that lack them.
class Int8Factor {
 public:
  Int8Factor() = default;
  FASTRNN_FN explicit Int8Factor(const int8_t* fours) {
    int32_t word;
    std::memcpy(&word, fours, sizeof word);
    values_ = word - Words{};
#if defined(FASTRNN_ISA_AVX512)
    magnitudes_ = (Words)_mm512_abs_epi8((__m512i)values_);
    negative_ = _mm512_movepi8_mask((__m512i)values_);
#elif defined(FASTRNN_ISA_AVX2)
    magnitudes_ = (Words)_mm256_abs_epi8((__m256i)values_);
#endif
  }

  // Adds to each sum the products with the four weights of its word, which are not -128 either. On x86 one factor of
  // an instruction has no sign: the other takes it. Sums of two products, at most 2 * 127 * 127, fit into 16 bits.
  template <bool kDotUnit>
  FASTRNN_FN Words add_products(Words weights, Words sums) const {
#if defined(FASTRNN_ISA_AVX512)
    const __m512i weight = (__m512i)weights, magnitude = (__m512i)magnitudes_;
    const __m512i with_sign = _mm512_mask_sub_epi8(weight, negative_, _mm512_setzero_si512(), weight);
    if constexpr (kDotUnit) {
      asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(magnitude), "v"(with_sign));
      return sums;
    }
    return sums + (Words)_mm512_madd_epi16(_mm512_maddubs_epi16(magnitude, with_sign), _mm512_set1_epi16(1));
#elif defined(FASTRNN_ISA_AVX2)
    const __m256i with_sign = _mm256_sign_epi8((__m256i)weights, (__m256i)values_);
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)magnitudes_, with_sign);
    return sums + (Words)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(FASTRNN_ISA_NEON)
    const int8x16_t a = (int8x16_t)values_, w = (int8x16_t)weights;
    if constexpr (kDotUnit) {
      asm(FASTRNN_ARM_INSTRUCTION(0x4e809400) : "+w"(sums) : "w"(a), "w"(w));  // SDOT
      return sums;
    }
    const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(w)), vmull_high_s8(a, w));
    return (Words)vpadalq_s16((int32x4_t)sums, pairs);
#else
    for (int shift = 0; shift < 32; shift += 8)
      sums += (values_ << (24 - shift) >> 24) * (weights << (24 - shift) >> 24);
    return sums;
#endif
  }

 private:
  Words values_;
#if defined(FASTRNN_ISA_AVX512)
  Words magnitudes_;
  __mmask64 negative_;
#elif defined(FASTRNN_ISA_AVX2)
  Words magnitudes_;
#endif
};

// Pairs of bfloat16 as the 32-bit words of a vector, so that pairs are moved and transposed whole.
FASTRNN_FN Vec<float> load_words(const BFloat16* p) {
  Vec<float> v;
  std::memcpy(&v.raw, p, sizeof v.raw);
  return v;
}

FASTRNN_FN void store_words(Vec<float> v, BFloat16* p, int64_t words = Vec<float>::kWidth) {
  std::memcpy(p, &v.raw, words * sizeof(float));
}

// The first n values of a half type, the others 0.
template <class S>
FASTRNN_FN HalfBits load_bits(const S* p, int64_t n) {
  HalfBits bits = {};
  if (n >= Vec<float>::kWidth)
    std::memcpy(&bits, p, sizeof bits);
  else
    std::memcpy(&bits, p, n * sizeof(S));
  return bits;
}

// load_as_vec() loads the first n values of a row of any storage type as a vector of its accumulation type, the other
// lanes 0; store_as() stores them back.
template <class S>
FASTRNN_FN Vec<Accumulate<S>> load_as_vec(const S* p, int64_t n) {
  if constexpr (std::is_same_v<S, Accumulate<S>>)
    return load_first(p, n);
  else if constexpr (std::is_same_v<S, RoundedFloat>)
    return load_first(&p->value, n);
  else
    return widen(load_bits(p, n), S{});
}

template <class S>
FASTRNN_FN void store_as(Vec<Accumulate<S>> v, S* p, int64_t n) {
  if constexpr (std::is_same_v<S, Accumulate<S>>) {
    store_first(v, p, n);
  } else if constexpr (std::is_same_v<S, RoundedFloat>) {
    store_first(v, &p->value, n);
  } else {
    const HalfBits bits = narrow(v, S{});
    if (n >= Vec<float>::kWidth)
      std::memcpy(p, &bits, sizeof bits);
    else
      std::memcpy(p, &bits, n * sizeof(S));
  }
}

// Word j is (low[j], high[j]) for j < n, rounded to bfloat16; a null row is zero.
template <class S>
FASTRNN_FN Vec<float> zip(const S* low, const S* high, int64_t n) {
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  const auto words = [n](const S* p) FASTRNN_LAMBDA {
    HalfBits bits = {};
    if constexpr (std::is_same_v<S, BFloat16>) {
      if (p) bits = load_bits(p, n);
    } else {
      if (p) bits = narrow(load_as_vec(p, n), BFloat16{});
    }
    return __builtin_convertvector(bits, Wide);
  };
  return Vec<float>((Vec<float>::Raw)(words(low) | words(high) << 16));
}

// Does the same as load_as_vec() for a row of any stride.
template <class S>
FASTRNN_FN Vec<Accumulate<S>> load_strided(const S* p, int64_t stride, int64_t n) {
  using A = Accumulate<S>;
  if (stride == 1) return load_as_vec(p, n);
  A lanes[Vec<A>::kWidth] = {};
  n = std::min<int64_t>(n, Vec<A>::kWidth);
  for (int64_t j = 0; j < n; ++j) lanes[j] = Storage<S>::to(p[j * stride]);
  return Vec<A>::load(lanes);
}

// gather() copies a row of any stride to a contiguous one, and scatter() copies back. Either row may have the storage
// type or the accumulation type.
template <class S, class E>
inline void gather(const S* row, int64_t stride, E* out, int64_t n) {
  if (std::is_same_v<S, E> && stride == 1) {
    std::memcpy(out, row, n * sizeof(S));
  } else if (stride == 1) {
    for (int64_t j = 0; j < n; j += Vec<Accumulate<S>>::kWidth) store_as(load_as_vec(row + j, n - j), out + j, n - j);
  } else {
    for (int64_t j = 0; j < n; ++j) out[j] = convert<E>(row[j * stride]);
  }
}

template <class E, class S>
inline void scatter(const E* row, S* out, int64_t stride, int64_t n) {
  if (stride == 1)
    gather(row, 1, out, n);
  else
    for (int64_t j = 0; j < n; ++j) out[j * stride] = convert<S>(row[j]);
}

}  // namespace fastrnn::FASTRNN_ISA
