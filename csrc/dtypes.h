// Storage types below the torch boundary, and the type each is accumulated in.
//
// Half types store and load only: every product, sum and cell state is a float, so rounding happens once, on the
// way to memory.
#pragma once

#include <bit>
#include <cstdint>

// Marks a function of formulas, which is inlined into every kernel that uses it. (Without the attribute, gcc compiles a
// template's friends for the baseline, even where a pragma names an instruction set.)
#ifdef __CUDACC__
#define FASTRNN_FN __host__ __device__ __forceinline__
#define FASTRNN_LAMBDA
#else
#define FASTRNN_FN [[gnu::always_inline]] inline
#define FASTRNN_LAMBDA __attribute__((always_inline))
#endif

namespace fastrnn {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

FASTRNN_FN BFloat16 to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40)};  // keep a NaN a NaN
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31;
  const uint32_t magnitude = uint32_t{x.bits} & 0x7fff;
  if (magnitude >= 0x7c00)  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // 2^112 moves the exponent from half's bias to float's; subnormal halves come out normal.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

inline Half to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 31 << 15;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal half: the float adder rounds to a multiple of 2^-24
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13))};
}

// A float32 that products round to bfloat16: torch's layers may do so where they are told.
struct RoundedFloat {
  float value;
};

// A dual number. Its memory layout is that of a complex number, and torch tensors carry it as one.
template <class A>
struct Dual {
  A value;
  A tangent;

  Dual() = default;
  Dual(A v, A t = A(0)) : value(v), tangent(t) {}
  Dual& operator+=(Dual other) {
    value += other.value;
    tangent += other.tangent;
    return *this;
  }
};

template <class T>
constexpr bool kDual = false;
template <class A>
constexpr bool kDual<Dual<A>> = true;

// The type in which values of storage type S are accumulated, and the conversions between the two.
template <class S>
struct Storage {
  using Accumulate = S;
  static S from(S x) { return x; }
  static S to(S x) { return x; }
};

template <>
struct Storage<BFloat16> {
  using Accumulate = float;
  static BFloat16 from(float x) { return to_bfloat16(x); }
  static float to(BFloat16 x) { return to_float(x); }
};

template <>
struct Storage<Half> {
  using Accumulate = float;
  static Half from(float x) { return to_half(x); }
  static float to(Half x) { return to_float(x); }
};

template <>
struct Storage<RoundedFloat> {
  using Accumulate = float;
  static RoundedFloat from(float x) { return {x}; }
  static float to(RoundedFloat x) { return x.value; }
};

template <class S>
using Accumulate = typename Storage<S>::Accumulate;

// Converts between storage types, or between a storage type and its accumulation type.
template <class To, class From>
FASTRNN_FN To convert(From x) {
  return Storage<To>::from(Storage<From>::to(x));
}

}  // namespace fastrnn
