// What each PTX instruction computes, one function template an instruction: `op::add<f32, rn | ftz>(a, b)`.
//
// Values travel as untyped bits, as in PTX registers; the type argument says how to read them. Half types compute in
// double with round-to-odd and are rounded once, so that results are exact for every rounding mode. Every NaN that an
// instruction makes is the GPU's canonical one: kernels may use other NaN patterns as marks, and x86 would keep them.
// Approximate functions are right to the last bit until the engine perturbs; then they use up the PTX manual's bounds.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <concepts>
#include <limits>

#include "engine.h"

namespace sim::op {

// --- types ----------------------------------------------------------------------------------------------------------
template <class T>
struct Integer {
  using Value = T;
  using Bits = std::make_unsigned_t<T>;
};
struct s8 : Integer<int8_t> {};
struct s16 : Integer<int16_t> {};
struct s32 : Integer<int32_t> {};
struct s64 : Integer<int64_t> {};
struct u8 : Integer<uint8_t> {};
struct u16 : Integer<uint16_t> {};
struct u32 : Integer<uint32_t> {};
struct u64 : Integer<uint64_t> {};
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;

struct pred {
  using Value = bool;
  using Bits = bool;
};

template <class B, int Exponent, int Mantissa>
struct Float {
  using Bits = B;
  static constexpr int kExponent = Exponent, kMantissa = Mantissa;
  static constexpr B kInfinity = static_cast<B>(((B{1} << Exponent) - 1) << Mantissa);
  static constexpr B kSign = static_cast<B>(B{1} << (Exponent + Mantissa));
  static constexpr B kNaN = static_cast<B>(kSign - 1);
};
struct f16 : Float<uint16_t, 5, 10> {};
struct bf16 : Float<uint16_t, 8, 7> {};
struct tf32 : Float<uint32_t, 8, 10> {};  // as narrow() gives it: 19 bits at the bottom
struct f32 : Float<uint32_t, 8, 23> {
  using Value = float;
};
struct f64 : Float<uint64_t, 11, 52> {
  using Value = double;
  static constexpr uint64_t kNaN = 0x7ff8000000000000;
};

template <class L>
struct Pair {
  using Lane = L;
  using Bits = uint32_t;
};
struct f16x2 : Pair<f16> {};
struct bf16x2 : Pair<bf16> {};
struct s16x2 : Pair<s16> {};
struct u16x2 : Pair<u16> {};

template <class T>
using Bits = typename T::Bits;
template <class T>
concept Paired = requires { typename T::Lane; };
template <class T>
concept Floating = requires { T::kMantissa; };
template <class T>
concept Half = std::same_as<T, f16> || std::same_as<T, bf16>;

// Modifiers of an instruction, as a set.
enum Modifier : unsigned {
  rn = 1,
  rz = 2,
  rm = 4,
  rp = 8,
  rna = 16,
  ftz = 32,
  sat = 64,
  relu = 128,
  NaN = 256,
  abs_ = 512,
  wrap = 1024,
  shiftamt = 2048,
};
constexpr unsigned kDirected = rz | rm | rp;

// --- rounding -------------------------------------------------------------------------------------------------------
// A double rounded once to a smaller format.
template <class T>
constexpr uint64_t narrow(double value, unsigned mode = rn) {
  const uint64_t bits = std::bit_cast<uint64_t>(value);
  const bool negative = bits >> 63;
  const uint64_t sign = negative ? T::kSign : 0;
  const int biased = bits >> 52 & 0x7ff;
  if (value != value) return T::kNaN;
  if (biased == 0x7ff) return sign | T::kInfinity;
  constexpr int kBias = (1 << (T::kExponent - 1)) - 1;
  int exponent = biased - 1023;
  if (exponent > kBias) exponent = kBias + 1;
  if (exponent < 1 - kBias) exponent = 1 - kBias;
  // The value in units of its last place; a power of two, so the product is exact.
  const double unit = std::bit_cast<double>(static_cast<uint64_t>(1023 + T::kMantissa - exponent) << 52);
  const double scaled = std::bit_cast<double>(bits & ~(1ull << 63)) * unit;
  if (scaled >= 0x1p60) return sign | (mode & rz || mode & (negative ? rp : rm) ? T::kInfinity - 1 : T::kInfinity);
  uint64_t whole = static_cast<uint64_t>(scaled);
  const double rest = scaled - static_cast<double>(whole);
  if (mode & rn) {
    whole += rest > 0.5 || (rest == 0.5 && whole & 1);
  } else if (mode & rna) {
    whole += rest >= 0.5;
  } else if (mode & (negative ? rm : rp)) {
    whole += rest > 0;
  }
  // A significand that grows by a bit carries into the exponent by itself.
  const uint64_t magnitude = whole + (static_cast<uint64_t>(exponent + kBias - 1) << T::kMantissa);
  if (magnitude < T::kInfinity) return sign | magnitude;
  return sign | (mode & rz || mode & (negative ? rp : rm) ? T::kInfinity - 1 : T::kInfinity);
}

// a + b, the last bit telling whether anything was lost ("round to odd"): a later rounding to fewer bits is then right.
SIM_INLINE double odd_sum(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double part = sum - a;
  const double lost = (a - (sum - part)) + (b - part);
  uint64_t bits = std::bit_cast<uint64_t>(sum);
  if (lost != 0 && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
  return std::bit_cast<double>(bits);
}

// The arithmetic of half types: products and quotients of 11 bits are safe in a double, sums need round-to-odd.
struct Exact {
  double value;
  friend Exact operator+(Exact a, Exact b) { return {odd_sum(a.value, b.value)}; }
  friend Exact operator-(Exact a, Exact b) { return {odd_sum(a.value, -b.value)}; }
  friend Exact operator*(Exact a, Exact b) { return {a.value * b.value}; }
  friend Exact fma(Exact a, Exact b, Exact c) { return {odd_sum(a.value * b.value, c.value)}; }
};

template <Half T>
SIM_INLINE float half_value(uint16_t bits) {
  if constexpr (std::same_as<T, bf16>) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  // Shifted into a float's fields the exponent is 112 too small; the product mends subnormals as well.
  const float magnitude = std::bit_cast<float>(static_cast<uint32_t>(bits & 0x7fff) << 13) * 0x1p112f;
  const float value =
      magnitude >= 65536.0f ? std::bit_cast<float>(static_cast<uint32_t>(bits & 0x3ff) << 13 | 0x7f800000) : magnitude;
  return bits & 0x8000 ? -value : value;
}

template <class T>
SIM_INLINE auto decode(Bits<T> bits) {
  if constexpr (Half<T>) {
    return Exact{half_value<T>(bits)};
  } else {
    return std::bit_cast<typename T::Value>(bits);
  }
}
template <Floating T>
SIM_INLINE double as_double(Bits<T> bits) {
  if constexpr (Half<T>) {
    return half_value<T>(bits);
  } else {
    return decode<T>(bits);
  }
}

SIM_INLINE Bits<f32> encode_as(f32, float v) { return v != v ? f32::kNaN : std::bit_cast<uint32_t>(v); }
SIM_INLINE Bits<f64> encode_as(f64, double v) { return std::bit_cast<uint64_t>(v); }
template <Half T>
SIM_INLINE uint16_t encode_as(T, Exact v) {
  return static_cast<uint16_t>(narrow<T>(v.value));
}

template <Floating T>
SIM_INLINE bool is_nan(Bits<T> a) {
  return (a & static_cast<Bits<T>>(~T::kSign)) > T::kInfinity;
}
template <Floating T, unsigned M>
SIM_INLINE Bits<T> flush(Bits<T> bits) {
  if constexpr ((M & ftz) != 0)
    if ((bits & T::kInfinity) == 0) return bits & T::kSign;
  return bits;
}
template <Floating T>
constexpr Bits<T> one() {
  return static_cast<Bits<T>>((T::kInfinity >> 1) & T::kInfinity & ~((Bits<T>{1} << T::kMantissa) - 1));
}
// Clamps of a result: .sat to [0, 1] with NaN to +0, .relu to [0, inf] with NaN kept.
template <Floating T, unsigned M>
SIM_INLINE Bits<T> finish(Bits<T> bits) {
  bits = flush<T, M>(bits);
  if constexpr ((M & sat) != 0) {
    if (is_nan<T>(bits) || bits & T::kSign) return 0;
    return bits > one<T>() ? one<T>() : bits;
  }
  if constexpr ((M & relu) != 0) {
    if (is_nan<T>(bits)) return T::kNaN;
    if (bits & T::kSign) return 0;
  }
  return bits;
}

// Directed rounding of native types: the processor rounds, the compiler must not look through.
template <unsigned M>
struct DirectedRounding {
  DirectedRounding() { std::fesetround(M & rz ? FE_TOWARDZERO : M & rm ? FE_DOWNWARD : FE_UPWARD); }
  ~DirectedRounding() { std::fesetround(FE_TONEAREST); }
};
template <class V>
SIM_INLINE V opaque(V value) {
  volatile V hidden = value;
  return hidden;
}
template <unsigned M, class F, class... V>
SIM_INLINE auto rounded(F f, V... values) {
  if constexpr ((M & kDirected) != 0) {
    DirectedRounding<M> scope;
    return opaque(f(opaque(values)...));
  } else {
    return f(values...);
  }
}

// f on each operand's value, whatever the type: integers, floats, halves, and both lanes of a pair.
template <class T, unsigned M = 0, class F, class... A>
SIM_INLINE Bits<T> arithmetic(F f, A... a) {
  if constexpr (Paired<T>) {
    using Lane = typename T::Lane;
    const uint32_t low = arithmetic<Lane, M>(f, static_cast<uint16_t>(a)...);
    const uint32_t high = arithmetic<Lane, M>(f, static_cast<uint16_t>(a >> 16)...);
    return low | high << 16;
  } else if constexpr (Floating<T>) {
    if constexpr (Half<T>) {
      return finish<T, M>(encode_as(T{}, f(decode<T>(flush<T, M>(a))...)));
    } else {
      return finish<T, M>(encode_as(T{}, rounded<M>(f, decode<T>(flush<T, M>(a))...)));
    }
  } else {
    return static_cast<Bits<T>>(f(decode<T>(a)...));
  }
}
// The same with f on bits.
template <class T, class F, class... A>
SIM_INLINE Bits<T> lanewise(F f, A... a) {
  if constexpr (Paired<T>) {
    const uint32_t low = f(typename T::Lane{}, static_cast<uint16_t>(a)...);
    const uint32_t high = f(typename T::Lane{}, static_cast<uint16_t>(a >> 16)...);
    return low | high << 16;
  } else {
    return f(T{}, static_cast<Bits<T>>(a)...);
  }
}

// --- integer and float arithmetic -----------------------------------------------------------------------------------
template <class V>
struct TwiceAsWide;
template <>
struct TwiceAsWide<int16_t> {
  using type = int32_t;
};
template <>
struct TwiceAsWide<uint16_t> {
  using type = uint32_t;
};
template <>
struct TwiceAsWide<int32_t> {
  using type = int64_t;
};
template <>
struct TwiceAsWide<uint32_t> {
  using type = uint64_t;
};
template <>
struct TwiceAsWide<int64_t> {
  using type = __int128;
};
template <>
struct TwiceAsWide<uint64_t> {
  using type = unsigned __int128;
};
template <class T>
using Wide = typename TwiceAsWide<typename T::Value>::type;

template <class T, class V>
SIM_INLINE typename T::Value clamped(V value) {
  using Limits = std::numeric_limits<typename T::Value>;
  if (value < static_cast<V>(Limits::min())) return Limits::min();
  if (value > static_cast<V>(Limits::max())) return Limits::max();
  return static_cast<typename T::Value>(value);
}

template <class T, unsigned M = 0>
SIM_INLINE Bits<T> add(Bits<T> a, Bits<T> b) {
  if constexpr (std::same_as<T, s32> && (M & sat) != 0)
    return clamped<s32>(static_cast<int64_t>(decode<T>(a)) + decode<T>(b));
  else
    return arithmetic<T, M>([](auto x, auto y) { return x + y; }, a, b);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> sub(Bits<T> a, Bits<T> b) {
  if constexpr (std::same_as<T, s32> && (M & sat) != 0)
    return clamped<s32>(static_cast<int64_t>(decode<T>(a)) - decode<T>(b));
  else
    return arithmetic<T, M>([](auto x, auto y) { return x - y; }, a, b);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> mul(Bits<T> a, Bits<T> b) {
  return arithmetic<T, M>([](auto x, auto y) { return x * y; }, a, b);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> fma(Bits<T> a, Bits<T> b, Bits<T> c) {
  using std::fma;
  return arithmetic<T, M>([](auto x, auto y, auto z) { return fma(x, y, z); }, a, b, c);
}
template <class T>
SIM_INLINE auto mul_wide(Bits<T> a, Bits<T> b) {
  return static_cast<std::make_unsigned_t<Wide<T>>>(static_cast<Wide<T>>(decode<T>(a)) * decode<T>(b));
}
template <class T>
SIM_INLINE Bits<T> mul_lo(Bits<T> a, Bits<T> b) {
  return static_cast<Bits<T>>(static_cast<Wide<T>>(decode<T>(a)) * decode<T>(b));
}
template <class T>
SIM_INLINE Bits<T> mul_hi(Bits<T> a, Bits<T> b) {
  return static_cast<Bits<T>>(static_cast<Wide<T>>(decode<T>(a)) * decode<T>(b) >> (8 * sizeof(Bits<T>)));
}
template <class T>
SIM_INLINE auto mad_wide(Bits<T> a, Bits<T> b, std::make_unsigned_t<Wide<T>> c) {
  return mul_wide<T>(a, b) + c;
}
template <class T>
SIM_INLINE Bits<T> mad_lo(Bits<T> a, Bits<T> b, Bits<T> c) {
  return static_cast<Bits<T>>(mul_lo<T>(a, b) + c);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> mad_hi(Bits<T> a, Bits<T> b, Bits<T> c) {
  return add<T, M>(mul_hi<T>(a, b), c);
}
template <class T>  // operands of 24 bits
SIM_INLINE Bits<T> mul24_lo(Bits<T> a, Bits<T> b) {
  const auto low = [](Bits<T> x) { return static_cast<Bits<T>>(decode<T>(x << 8) >> 8); };
  return low(a) * low(b);
}
template <class T>
SIM_INLINE Bits<T> mad24_lo(Bits<T> a, Bits<T> b, Bits<T> c) {
  return mul24_lo<T>(a, b) + c;
}
template <class T>
SIM_INLINE Bits<T> sad(Bits<T> a, Bits<T> b, Bits<T> c) {
  return c + (decode<T>(a) < decode<T>(b) ? b - a : a - b);
}

// Carry chains. A borrow is carried as true.
template <class T>
SIM_INLINE Bits<T> add_carry(Bits<T> a, Bits<T> b, bool in, bool& out) {
  Bits<T> sum;
  const bool first = __builtin_add_overflow(a, b, &sum);
  const bool second = __builtin_add_overflow(sum, static_cast<Bits<T>>(in), &sum);
  out = first || second;
  return sum;
}
template <class T>
SIM_INLINE Bits<T> sub_borrow(Bits<T> a, Bits<T> b, bool in, bool& out) {
  Bits<T> difference;
  const bool first = __builtin_sub_overflow(a, b, &difference);
  const bool second = __builtin_sub_overflow(difference, static_cast<Bits<T>>(in), &difference);
  out = first || second;
  return difference;
}

// Integer division by zero is undefined in PTX, a trap on x86: all ones and the dividend, as GPUs give.
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> div(Bits<T> a, Bits<T> b) {
  if constexpr (!Floating<T>) {
    if (b == 0) return static_cast<Bits<T>>(~Bits<T>{0});
    if constexpr (std::is_signed_v<typename T::Value>)
      if (decode<T>(b) == -1) return static_cast<Bits<T>>(-a);
  }
  return arithmetic<T, M>([](auto x, auto y) { return x / y; }, a, b);
}
template <class T>
SIM_INLINE Bits<T> rem(Bits<T> a, Bits<T> b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<typename T::Value>)
    if (decode<T>(b) == -1) return 0;
  return arithmetic<T>([](auto x, auto y) { return x % y; }, a, b);
}
template <class T, unsigned M>
SIM_INLINE Bits<T> rcp(Bits<T> a) {
  return arithmetic<T, M>([](auto x) { return decltype(x){1} / x; }, a);
}
template <class T, unsigned M>
SIM_INLINE Bits<T> sqrt(Bits<T> a) {
  return arithmetic<T, M>([](auto x) { return std::sqrt(x); }, a);
}

template <class T, unsigned M = 0>
SIM_INLINE Bits<T> abs(Bits<T> a) {
  return lanewise<T>(
      [](auto type, auto x) -> decltype(x) {
        using L = decltype(type);
        if constexpr (Floating<L>)
          return flush<L, M>(x & static_cast<decltype(x)>(~L::kSign));
        else
          return decode<L>(x) < 0 ? -x : x;
      },
      a);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> neg(Bits<T> a) {
  return lanewise<T>(
      [](auto type, auto x) -> decltype(x) {
        using L = decltype(type);
        if constexpr (Floating<L>)
          return flush<L, M>(x) ^ L::kSign;
        else
          return -x;
      },
      a);
}
template <class T>  // a's sign on b
SIM_INLINE Bits<T> copysign(Bits<T> a, Bits<T> b) {
  return (a & T::kSign) | (b & ~T::kSign);
}

template <class T, unsigned M, bool kMax>
SIM_INLINE Bits<T> choose_extreme(Bits<T> a, Bits<T> b) {
  return lanewise<T>(
      [](auto type, auto x, auto y) -> decltype(x) {
        using L = decltype(type);
        if constexpr (Floating<L>) {
          x = flush<L, M>(x), y = flush<L, M>(y);
          if constexpr ((M & abs_) != 0) x &= ~L::kSign, y &= ~L::kSign;
          const bool none = is_nan<L>(x) && is_nan<L>(y);
          if (none || ((M & NaN) && (is_nan<L>(x) || is_nan<L>(y)))) return L::kNaN;
          if (is_nan<L>(x)) return finish<L, M>(y);
          if (is_nan<L>(y)) return finish<L, M>(x);
          // Sign and magnitude as a signed number: this orders -0 below +0 too.
          const auto order = [](auto bits) {
            const int64_t magnitude = static_cast<int64_t>(bits & ~L::kSign);
            return bits & L::kSign ? ~magnitude : magnitude;
          };
          return finish<L, M>((order(x) < order(y)) == kMax ? y : x);
        } else {
          return (decode<L>(x) < decode<L>(y)) == kMax ? y : x;
        }
      },
      a, b);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> min(Bits<T> a, Bits<T> b) {
  return choose_extreme<T, M, false>(a, b);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> max(Bits<T> a, Bits<T> b) {
  return choose_extreme<T, M, true>(a, b);
}

// --- comparison -----------------------------------------------------------------------------------------------------
enum class Compare { eq, ne, lt, le, gt, ge, lo, ls, hi, hs, equ, neu, ltu, leu, gtu, geu, num, nan };

template <class T, Compare C, unsigned M = 0>
SIM_INLINE bool compare(Bits<T> a, Bits<T> b) {
  using enum Compare;
  if constexpr (Floating<T>) {
    const double x = as_double<T>(flush<T, M>(a)), y = as_double<T>(flush<T, M>(b));
    const bool unordered = x != x || y != y;
    switch (C) {
      case eq: return x == y;
      case ne: return !unordered && x != y;
      case lt: return x < y;
      case le: return x <= y;
      case gt: return x > y;
      case ge: return x >= y;
      case equ: return unordered || x == y;
      case neu: return x != y;
      case ltu: return !(x >= y);
      case leu: return !(x > y);
      case gtu: return !(x <= y);
      case geu: return !(x < y);
      case num: return !unordered;
      default: return unordered;
    }
  } else {
    const auto x = decode<T>(a), y = decode<T>(b);
    switch (C) {
      case eq: return a == b;
      case ne: return a != b;
      case lt: return x < y;
      case le: return x <= y;
      case gt: return x > y;
      case ge: return x >= y;
      case lo: return a < b;
      case ls: return a <= b;
      case hi: return a > b;
      default: return a >= b;
    }
  }
}
// set: all ones or 1.0 of the result type D where the comparison of type T holds
template <class D, class T, Compare C, unsigned M = 0>
SIM_INLINE Bits<D> set(Bits<T> a, Bits<T> b) {
  if constexpr (Paired<T>) {
    const uint32_t low = set<std::conditional_t<Paired<D>, typename T::Lane, u16>, typename T::Lane, C, M>(a, b);
    const uint32_t high =
        set<std::conditional_t<Paired<D>, typename T::Lane, u16>, typename T::Lane, C, M>(a >> 16, b >> 16);
    return low | high << 16;
  } else {
    const bool holds = compare<T, C, M>(a, b);
    if constexpr (Floating<D>) return holds ? one<D>() : 0;
    return holds ? static_cast<Bits<D>>(~Bits<D>{0}) : Bits<D>{0};
  }
}
template <class T, unsigned M = 0>  // slct: by the sign of c
SIM_INLINE bool not_negative(Bits<T> c) {
  return compare<T, Compare::ge, M>(c, 0);
}
enum class Property { finite, infinite, number, notanumber, normal, subnormal };
template <class T, Property P>
SIM_INLINE bool testp(Bits<T> a) {
  const Bits<T> exponent = a & T::kInfinity, mantissa = a & ((Bits<T>{1} << T::kMantissa) - 1);
  switch (P) {
    case Property::finite: return exponent != T::kInfinity;
    case Property::infinite: return exponent == T::kInfinity && mantissa == 0;
    case Property::number: return !is_nan<T>(a);
    case Property::notanumber: return is_nan<T>(a);
    case Property::normal: return exponent != T::kInfinity && exponent != 0;
    default: return exponent == 0 && mantissa != 0;
  }
}

// --- bits -----------------------------------------------------------------------------------------------------------
template <class T>
SIM_INLINE Bits<T> and_(Bits<T> a, Bits<T> b) {
  return a & b;
}
template <class T>
SIM_INLINE Bits<T> or_(Bits<T> a, Bits<T> b) {
  return a | b;
}
template <class T>
SIM_INLINE Bits<T> xor_(Bits<T> a, Bits<T> b) {
  return a ^ b;
}
template <class T>
SIM_INLINE Bits<T> not_(Bits<T> a) {
  if constexpr (std::same_as<T, pred>)
    return !a;
  else
    return static_cast<Bits<T>>(~a);
}
template <class T>
SIM_INLINE Bits<T> cnot(Bits<T> a) {
  return a == 0;
}

template <class T>
constexpr uint32_t kWidth = 8 * sizeof(Bits<T>);

template <class T>
SIM_INLINE Bits<T> shl(Bits<T> a, uint32_t n) {
  return n >= kWidth<T> ? 0 : static_cast<Bits<T>>(static_cast<uint64_t>(a) << n);
}
template <class T>
SIM_INLINE Bits<T> shr(Bits<T> a, uint32_t n) {
  constexpr bool kSigned = std::is_signed_v<typename T::Value>;
  if (n >= kWidth<T>) return kSigned && decode<T>(a) < 0 ? static_cast<Bits<T>>(~Bits<T>{0}) : Bits<T>{0};
  return static_cast<Bits<T>>(decode<T>(a) >> n);
}
// Funnel shifts of b:a.
template <unsigned M>
SIM_INLINE uint32_t shf_l(uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t n = M & wrap ? c & 31 : c < 32 ? c : 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(b) << 32 | a) << n >> 32);
}
template <unsigned M>
SIM_INLINE uint32_t shf_r(uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t n = M & wrap ? c & 31 : c < 32 ? c : 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(b) << 32 | a) >> n);
}
template <uint32_t Table>
SIM_INLINE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int row = 0; row < 8; ++row)
    if (Table >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  return result;
}
enum class Permute { generic, f4e, b4e, rc8, ecl, ecr, rc16 };
template <Permute P>
SIM_INLINE uint32_t prmt(uint32_t a, uint32_t b, uint32_t c) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t s = c & 3;
    uint32_t from = 0;  // the byte's number, bit 3: replicate its sign
    switch (P) {
      case Permute::generic: from = c >> (4 * i) & 15; break;
      case Permute::f4e: from = (s + i) & 7; break;
      case Permute::b4e: from = (s - i) & 7; break;
      case Permute::rc8: from = s; break;
      case Permute::ecl: from = i < s ? s : i; break;
      case Permute::ecr: from = i > s ? s : i; break;
      case Permute::rc16: from = (s & 1) * 2 + (i & 1); break;
    }
    const uint8_t byte = static_cast<uint8_t>(bytes >> (8 * (from & 7)));
    result |= static_cast<uint32_t>(from & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * i);
  }
  return result;
}
template <class T>
SIM_INLINE Bits<T> low_bits(uint32_t n) {
  return n >= kWidth<T> ? ~Bits<T>{0} : (Bits<T>{1} << n) - 1;
}
template <class T>
SIM_INLINE Bits<T> bfi(Bits<T> insert, Bits<T> base, uint32_t position, uint32_t length) {
  const Bits<T> mask = shl<T>(low_bits<T>(length & 0xff), position & 0xff);
  return (base & ~mask) | (shl<T>(insert, position & 0xff) & mask);
}
template <class T>
SIM_INLINE Bits<T> bfe(Bits<T> a, uint32_t position, uint32_t length) {
  position &= 0xff, length &= 0xff;
  const Bits<T> field = (position < kWidth<T> ? a >> position : 0) & low_bits<T>(length);
  if constexpr (std::is_signed_v<typename T::Value>) {
    if (length == 0) return 0;
    const uint32_t last = position + length - 1 < kWidth<T> ? position + length - 1 : kWidth<T> - 1;
    if (a >> last & 1) return field | ~low_bits<T>(last < position ? 0 : last - position + 1);
  }
  return field;
}
template <class T>
SIM_INLINE uint32_t popc(Bits<T> a) {
  return std::popcount(a);
}
template <class T>
SIM_INLINE uint32_t clz(Bits<T> a) {
  return std::countl_zero(a);
}
template <class T>
SIM_INLINE Bits<T> brev(Bits<T> a) {
  Bits<T> result = 0;
  for (uint32_t i = 0; i < kWidth<T>; ++i) result = result << 1 | (a >> i & 1);
  return result;
}
template <class T, unsigned M = 0>  // the highest bit that is not the sign
SIM_INLINE uint32_t bfind(Bits<T> a) {
  if constexpr (std::is_signed_v<typename T::Value>)
    if (decode<T>(a) < 0) a = ~a;
  if (a == 0) return 0xffffffff;
  const uint32_t zeros = std::countl_zero(a);
  return M & shiftamt ? zeros : kWidth<T> - 1 - zeros;
}
template <unsigned M>
SIM_INLINE uint32_t bmsk(uint32_t position, uint32_t length) {
  if (M & wrap) position &= 31, length &= 31;
  return shl<b32>(low_bits<b32>(length), position);
}
template <class T, unsigned M>
SIM_INLINE uint32_t szext(Bits<T> a, uint32_t n) {
  if (M & wrap) n &= 31;
  return bfe<T>(a, 0, n < 32 ? n : 32);
}
template <class A, class B>  // four products of bytes
SIM_INLINE uint32_t dp4a(uint32_t a, uint32_t b, uint32_t c) {
  for (int shift = 0; shift < 32; shift += 8) {
    const auto byte = [=](auto type, uint32_t x) {
      using T = std::conditional_t<std::same_as<decltype(type), s32>, int8_t, uint8_t>;
      return static_cast<int32_t>(static_cast<T>(x >> shift));
    };
    c += byte(A{}, a) * byte(B{}, b);
  }
  return c;
}

// --- conversion -----------------------------------------------------------------------------------------------------
enum class Whole { none, rni, rzi, rmi, rpi };
SIM_INLINE double to_whole(double v, Whole w) {
  switch (w) {
    case Whole::rni: return std::nearbyint(v);
    case Whole::rzi: return std::trunc(v);
    case Whole::rmi: return std::floor(v);
    case Whole::rpi: return std::ceil(v);
    default: return v;
  }
}
template <class D, unsigned M>
SIM_INLINE Bits<D> from_double(double v) {
  if constexpr (std::same_as<D, f64>)
    return encode_as(f64{}, v);
  else if constexpr (std::same_as<D, f32> && (M & kDirected) == 0)
    return encode_as(f32{}, static_cast<float>(v));
  else
    return static_cast<Bits<D>>(narrow<D>(v, M & (kDirected | rna) ? M : rn));
}
template <class D, class S, unsigned M = 0, Whole W = Whole::none>
SIM_INLINE Bits<D> cvt(Bits<S> a) {
  if constexpr (Floating<S> && Floating<D>) {
    a = flush<S, std::same_as<S, f32> ? M : 0>(a);
    return finish < D,
           std::same_as<D, f32> || !(M & ftz) ? M : M & ~ftz > (from_double<D, M>(to_whole(as_double<S>(a), W)));
  } else if constexpr (Floating<S>) {
    using V = typename D::Value;
    const double v = to_whole(as_double<S>(flush<S, std::same_as<S, f32> ? M : 0>(a)), W);
    if (v != v) return std::same_as<S, f64> || sizeof(V) == 8 ? Bits<D>{1} << (kWidth<D> - 1) : 0;
    using Limits = std::numeric_limits<V>;
    if (v <= static_cast<double>(Limits::min())) return static_cast<Bits<D>>(Limits::min());
    if (v >= static_cast<double>(Limits::max())) return static_cast<Bits<D>>(Limits::max());
    return static_cast<Bits<D>>(static_cast<V>(v));
  } else if constexpr (std::same_as<D, f32> || std::same_as<D, f64>) {
    using V = typename D::Value;
    return finish<D, M>(encode_as(D{}, rounded<M>([](auto x) { return static_cast<V>(x); }, decode<S>(a))));
  } else if constexpr (Floating<D>) {
    // 64 bits do not fit a double: the lost ones must still count in the one rounding.
    using V = typename S::Value;
    const V x = decode<S>(a), high = x & static_cast<V>(~static_cast<V>(0x7ff));
    return finish<D, M>(from_double<D, M>(odd_sum(static_cast<double>(high), static_cast<double>(x - high))));
  } else if constexpr ((M & sat) != 0) {
    using V = typename D::Value;
    return static_cast<Bits<D>>(clamped<D>(static_cast<__int128>(decode<S>(a)) > std::numeric_limits<V>::max()
                                               ? static_cast<__int128>(std::numeric_limits<V>::max())
                                               : static_cast<__int128>(decode<S>(a))));
  } else {
    return static_cast<Bits<D>>(decode<S>(a));
  }
}
template <class D, unsigned M>  // a to the upper half
SIM_INLINE uint32_t cvt_pair(uint32_t a, uint32_t b) {
  using Lane = typename D::Lane;
  return static_cast<uint32_t>(cvt<Lane, f32, M>(a)) << 16 | cvt<Lane, f32, M>(b);
}
template <unsigned M>
SIM_INLINE uint32_t cvt_tf32(uint32_t a) {
  const uint32_t bits = static_cast<uint32_t>(narrow<tf32>(decode<f32>(a), M & (rna | rz) ? M : rn));
  return is_nan<tf32>(bits) ? f32::kNaN : M & relu && bits & tf32::kSign ? 0 : bits << 13;
}
// A value of type T in a register that may be wider.
template <class T>
SIM_INLINE uint64_t extend(Bits<T> bits) {
  if constexpr (Floating<T> || Paired<T>)
    return bits;
  else
    return static_cast<uint64_t>(decode<T>(bits));
}

// --- approximate functions ------------------------------------------------------------------------------------------
// How far the PTX manual lets a result lie from the true one; in ulps it counts from the correctly rounded result.
struct Bound {
  double relative = 0, absolute = 0;
  int ulps = 0;
};
inline double unit_random(Thread& t) { return static_cast<double>(static_cast<int64_t>(random(t))) * 0x1p-63; }

template <class T, unsigned M = 0>
inline Bits<T> approximated(Thread& t, double exact, Bound bound) {
  Bits<T> bits = from_double<T, rn>(exact);
  if (perturbing(t) && exact != 0 && std::isfinite(exact)) {
    if (bound.ulps == 0) {
      const double allowed = std::fabs(exact) * bound.relative + bound.absolute;
      const Bits<T> moved = from_double<T, rn>(exact + allowed * unit_random(t));
      // Rounding adds its own part, which may be too much.
      if (std::fabs(as_double<T>(moved) - exact) <= allowed) bits = moved;
    } else if ((bits & T::kInfinity) != T::kInfinity && (bits & ~T::kSign) > 2) {
      bits += static_cast<Bits<T>>(static_cast<int>(random(t) % (2 * bound.ulps + 1)) - bound.ulps);
    }
  }
  return finish<T, M>(bits);
}
// f(a), perturbed by the bound for a's value; an argument of zero has a special value that is exact.
template <class T, unsigned M, class F, class B>
SIM_INLINE Bits<T> approximate(Thread& t, Bits<T> a, F f, B bound) {
  return lanewise<T>(
      [&](auto type, auto bits) {
        using L = decltype(type);
        const double x = as_double<L>(flush<L, M>(bits));
        return approximated<L, M>(t, f(x), x == 0 ? Bound{} : bound(L{}, x));
      },
      a);
}

// Powers of two are exact beyond the manual's word: CUDA's own double tanh and exp scale by ex2 of whole numbers.
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> ex2_approx(Thread& t, Bits<T> a) {
  const auto bound = [](auto type, double x) -> Bound {
    using L = decltype(type);
    if (x == std::trunc(x)) return {};
    if constexpr (std::same_as<L, f16>) return {.relative = 0x1p-10 * 1.0718};  // 2^-9.9
    if constexpr (std::same_as<L, bf16>) return {.relative = 0x1p-7};
    return {.ulps = 2};
  };
  return approximate<T, M>(t, a, [](double x) { return std::exp2(x); }, bound);
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> tanh_approx(Thread& t, Bits<T> a) {
  return approximate<T, M>(
      t, a, [](double x) { return std::tanh(x); },
      [](auto type, double) {
        if constexpr (std::same_as<decltype(type), f16>)
          return Bound{.absolute = 0x1p-11 * 1.009};  // 2^-10.987
        else if constexpr (std::same_as<decltype(type), bf16>)
          return Bound{.relative = 0x1p-8};
        else
          return Bound{.relative = 0x1p-11};
      });
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> lg2_approx(Thread& t, Bits<T> a) {
  return approximate<T, M>(
      t, a, [](double x) { return std::log2(x); },
      [](auto, double x) { return x > 0.5 && x < 2 ? Bound{.absolute = 0x1p-22} : Bound{.relative = 0x1p-22}; });
}
inline Bound trigonometric_bound(double x) {
  return {.absolute = std::fabs(x) <= 6.2831853 ? 0x1p-21 * 1.4142 : 0x1p-15 * 1.231};  // 2^-20.5, 2^-14.7
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> sin_approx(Thread& t, Bits<T> a) {
  return approximate<T, M>(
      t, a, [](double x) { return std::sin(x); }, [](auto, double x) { return trigonometric_bound(x); });
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> cos_approx(Thread& t, Bits<T> a) {
  return approximate<T, M>(
      t, a, [](double x) { return std::cos(x); }, [](auto, double x) { return trigonometric_bound(x); });
}
// The .ftz.f64 forms see and give only the upper word.
template <class T, unsigned M, class F, class B>
SIM_INLINE Bits<T> approximate_upper(Thread& t, Bits<T> a, F f, B bound) {
  if constexpr (std::same_as<T, f64> && (M & ftz) != 0) {
    constexpr uint64_t kUpper = 0xffffffff00000000;
    const double y = f(decode<f64>(flush<f64, M>(a & kUpper)));
    return y != y ? 0x7fffffff00000000 : flush<f64, M>(std::bit_cast<uint64_t>(y) & kUpper);
  } else {
    return approximate<T, M>(t, a, f, bound);
  }
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> rcp_approx(Thread& t, Bits<T> a) {
  return approximate_upper<T, M>(t, a, [](double x) { return 1 / x; }, [](auto, double) { return Bound{.ulps = 1}; });
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> rsqrt_approx(Thread& t, Bits<T> a) {
  return approximate_upper<T, M>(
      t, a, [](double x) { return 1 / std::sqrt(x); },
      [](auto type, double) {
        if constexpr (std::same_as<decltype(type), f32>)
          return Bound{.relative = 0x1p-23 * 1.0718};  // 2^-22.9
        else
          return Bound{.ulps = 1};
      });
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> sqrt_approx(Thread& t, Bits<T> a) {
  return approximate<T, M>(
      t, a, [](double x) { return std::sqrt(x); }, [](auto, double) { return Bound{.relative = 0x1p-23}; });
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> div_full(Thread& t, Bits<T> a, Bits<T> b) {
  const double y = as_double<T>(flush<T, M>(b));
  return approximated<T, M>(t, as_double<T>(flush<T, M>(a)) / y, {.ulps = 2});
}
template <class T, unsigned M = 0>
SIM_INLINE Bits<T> div_approx(Thread& t, Bits<T> a, Bits<T> b) {
  // Beyond 2^126 the divisor's reciprocal is flushed.
  const double y = as_double<T>(b);
  if (std::fabs(y) > 0x1p126 && std::isfinite(y)) {
    const bool infinite = (a & ~T::kSign) == T::kInfinity;
    return infinite || is_nan<T>(a) ? T::kNaN : (a ^ b) & T::kSign;
  }
  return div_full<T, M>(t, a, b);
}

// --- memory ---------------------------------------------------------------------------------------------------------
template <class T, class... Register>
SIM_INLINE void ld(Thread& t, const Site& site, Space space, Order order, Scope scope, uint64_t address,
                   Register&... registers) {
  Bits<T> in[sizeof...(registers)];
  load(t, site, space, address, in, sizeof(Bits<T>), sizeof...(registers), order, scope);
  int i = 0;
  ((registers = static_cast<Register>(extend<T>(in[i++]))), ...);
}
template <class T, class... Register>
SIM_INLINE void st(Thread& t, const Site& site, Space space, Order order, Scope scope, uint64_t address,
                   Register... registers) {
  const Bits<T> out[] = {static_cast<Bits<T>>(registers)...};
  store(t, site, space, address, out, sizeof(Bits<T>), sizeof...(registers), order, scope);
}
// Parameters at known offsets: plain bytes.
template <class T, class... Register>
SIM_INLINE void ld_bytes(const std::byte* from, Register&... registers) {
  Bits<T> in[sizeof...(registers)];
  std::memcpy(in, from, sizeof in);
  int i = 0;
  ((registers = static_cast<Register>(extend<T>(in[i++]))), ...);
}
template <class T, class... Register>
SIM_INLINE void st_bytes(std::byte* to, Register... registers) {
  const Bits<T> out[] = {static_cast<Bits<T>>(registers)...};
  std::memcpy(to, out, sizeof out);
}

enum class Update { add, min, max, exch, cas, and_, or_, xor_, inc, dec };
template <class T, Update U>
SIM_INLINE Bits<T> updated(Bits<T> old, Bits<T> b, Bits<T> c) {
  if constexpr (U == Update::add)
    return add<T>(old, b);
  else if constexpr (U == Update::min)
    return min<T>(old, b);
  else if constexpr (U == Update::max)
    return max<T>(old, b);
  else if constexpr (U == Update::exch)
    return b;
  else if constexpr (U == Update::cas)
    return old == b ? c : old;
  else if constexpr (U == Update::and_)
    return old & b;
  else if constexpr (U == Update::or_)
    return old | b;
  else if constexpr (U == Update::xor_)
    return old ^ b;
  else if constexpr (U == Update::inc)
    return old >= b ? 0 : old + 1;
  else
    return old == 0 || old > b ? b : old - 1;
}
template <class T, Update U>
SIM_INLINE Bits<T> atom(Thread& t, const Site& site, Space space, Order order, Scope scope, uint64_t address, Bits<T> b,
                        Bits<T> c = 0) {
  return static_cast<Bits<T>>(atomic(t, site, space, address, sizeof(Bits<T>), order, scope, [=](uint64_t old) {
    return static_cast<uint64_t>(updated<T, U>(static_cast<Bits<T>>(old), b, c));
  }));
}

// --- warp collectives -----------------------------------------------------------------------------------------------
enum Kind : int { kShuffle = kWarpSync + 1, kVote, kMatch, kReduce, kMatrixLoad, kMatrixMultiply };

enum class Shuffle { up, down, bfly, idx };
struct ShuffleOperands {
  uint32_t a, b, c, result;
  bool in_range;
};
template <Shuffle S>
inline void shfl(Thread& t, const Site& site, uint32_t& d, bool& in_range, uint32_t a, uint32_t b, uint32_t c,
                 uint32_t mask) {
  ShuffleOperands mine{a, b, c, 0, false};
  collective(t, site, kShuffle, mask, false, mine, [](ShuffleOperands** lanes, uint32_t arrived) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (!(arrived >> lane & 1)) continue;
      ShuffleOperands& my = *lanes[lane];
      const uint32_t b = my.b & 31, clamp = my.c & 31, segment = my.c >> 8 & 31;
      const uint32_t last = (lane & segment) | (clamp & ~segment), first = lane & segment;
      uint32_t from = lane;
      switch (S) {
        case Shuffle::up: from = lane - b, my.in_range = static_cast<int>(from) >= static_cast<int>(last); break;
        case Shuffle::down: from = lane + b, my.in_range = from <= last; break;
        case Shuffle::bfly: from = lane ^ b, my.in_range = from <= last; break;
        case Shuffle::idx: from = first | (b & ~segment), my.in_range = from <= last; break;
      }
      if (!my.in_range) from = lane;
      my.result = arrived >> from & 1 ? lanes[from]->a : 0xcdcdcdcd;  // a lane that is not there: unpredictable
    }
  });
  d = mine.result;
  in_range = mine.in_range;
}

enum class Vote { all, any, uni, ballot };
struct VoteOperands {
  bool predicate;
  uint32_t result;
};
template <Vote V>
inline uint32_t vote(Thread& t, const Site& site, bool predicate, uint32_t mask) {
  VoteOperands mine{predicate, 0};
  collective(t, site, kVote, mask, false, mine, [](VoteOperands** lanes, uint32_t arrived) {
    uint32_t ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (arrived >> lane & 1) ballot |= static_cast<uint32_t>(lanes[lane]->predicate) << lane;
    const uint32_t result = V == Vote::ballot ? ballot
                            : V == Vote::all  ? ballot == arrived
                            : V == Vote::any  ? ballot != 0
                                              : ballot == arrived || ballot == 0;
    for (int lane = 0; lane < 32; ++lane)
      if (arrived >> lane & 1) lanes[lane]->result = result;
  });
  return mine.result;
}

struct MatchOperands {
  uint64_t value;
  uint32_t result;
  bool all;
};
template <bool kAll>  // the lanes that hold my value; or all lanes where all hold one, else none
inline void match(Thread& t, const Site& site, uint32_t& d, bool& all, uint64_t value, uint32_t mask) {
  MatchOperands mine{value, 0, false};
  collective(t, site, kMatch, mask, false, mine, [](MatchOperands** lanes, uint32_t arrived) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(arrived >> lane & 1)) continue;
      uint32_t same = 0;
      for (int other = 0; other < 32; ++other)
        if (arrived >> other & 1 && lanes[other]->value == lanes[lane]->value) same |= 1u << other;
      lanes[lane]->all = same == arrived;
      lanes[lane]->result = kAll && same != arrived ? 0 : same;
    }
  });
  d = mine.result;
  all = mine.all;
}

template <class T, Update U>
inline uint32_t redux(Thread& t, const Site& site, uint32_t value, uint32_t mask) {
  collective(t, site, kReduce, mask, false, value, [](uint32_t** lanes, uint32_t arrived) {
    const int first = std::countr_zero(arrived);
    uint32_t sum = *lanes[first];
    for (int lane = first + 1; lane < 32; ++lane)
      if (arrived >> lane & 1) sum = updated<T, U>(sum, *lanes[lane], 0);
    for (int lane = first; lane < 32; ++lane)
      if (arrived >> lane & 1) *lanes[lane] = sum;
  });
  return value;
}

inline void warp_sync(Thread& t, const Site& site, uint32_t mask) {
  int nothing = 0;
  collective(t, site, kWarpSync, mask, false, nothing, [](int**, uint32_t) {});
}

// ldmatrix: lane 8 m + r holds the address of row r of matrix m; a row is 8 elements of 16 bits. Lane l receives
// elements 2 (l % 4) and the next of row l / 4, or with .trans of column l / 4.
template <int N>
struct MatrixRows {
  uint16_t row[8];
  uint32_t result[N];
};
template <int N, bool kTranspose, class... Register>
inline void ldmatrix(Thread& t, const Site& site, Space space, uint64_t address, Register&... registers) {
  MatrixRows<N> mine;
  if (t.lane < 8 * N) load(t, site, space, address, mine.row, 16, 1, Order::weak, Scope::none);
  collective(t, site, kMatrixLoad, 0xffffffff, true, mine, [&](MatrixRows<N>** lanes, uint32_t arrived) {
    if (arrived != 0xffffffff) fail(t, site, "ldmatrix needs all 32 lanes of the warp");
    for (int lane = 0; lane < 32; ++lane)
      for (int m = 0; m < N; ++m) {
        uint32_t pair = 0;
        for (int i = 0; i < 2; ++i) {
          const int along = 2 * (lane % 4) + i, across = lane / 4;
          const int row = kTranspose ? along : across, column = kTranspose ? across : along;
          pair |= static_cast<uint32_t>(lanes[8 * m + row]->row[column]) << (16 * i);
        }
        lanes[lane]->result[m] = pair;
      }
  });
  int m = 0;
  ((registers = mine.result[m++]), ...);
}

// mma.sync.m16n8kK, D[16, 8] = A[16, K] B[K, 8] + C[16, 8]. Fragments by the formulas of the PTX manual, "Matrix
// Fragments for mma.m16n8k...", with group = lane / 4 and thread = lane % 4, i an element's number within its fragment.
struct Position {
  int row, column;
};
template <class T, int K>
constexpr Position a_position(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if constexpr (std::same_as<T, tf32>)  // row + 8 for a1, a3; column + 4 for a2, a3
    return {i % 2 == 0 ? group : group + 8, i < 2 ? thread : thread + 4};
  else  // row + 8 for i in 2, 3, 6, 7; column + 8 for i >= 4
    return {i % 4 < 2 ? group : group + 8, thread * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
template <class T, int K>
constexpr Position b_position(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  if constexpr (std::same_as<T, tf32>)
    return {i == 0 ? thread : thread + 4, group};
  else
    return {thread * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
}
constexpr Position c_position(int lane, int i) {
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 1)};
}

template <class T>
SIM_INLINE float element(const uint32_t* registers, int i) {
  if constexpr (std::same_as<T, tf32>)
    return std::bit_cast<float>(registers[i] & ~0x1fffu);  // the tensor cores see no lower bits
  else
    return half_value<T>(static_cast<uint16_t>(registers[i / 2] >> (16 * (i % 2))));
}

template <class T, int K>
struct Fragments {
  static constexpr int kPerRegister = Half<T> ? 2 : 1;
  uint32_t a[16 * K / 32 / kPerRegister], b[K * 8 / 32 / kPerRegister], c[4];
};

// The manual leaves the order of summation and of rounding open: K products and C are added in an order by the seed,
// and f16 accumulators may be rounded on the way.
using Row = float __attribute__((vector_size(32)));
template <class T, class Accumulator, int K>
void multiply(Thread& t, Fragments<T, K>** lanes) {
  float a[16][K], c[16][8];
  Row b[K];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 16 * K / 32; ++i) {
      const Position p = a_position<T, K>(lane, i);
      a[p.row][p.column] = element<T>(lanes[lane]->a, i);
    }
    for (int i = 0; i < K * 8 / 32; ++i) {
      const Position p = b_position<T, K>(lane, i);
      b[p.row][p.column] = element<T>(lanes[lane]->b, i);
    }
    for (int i = 0; i < 4; ++i) {
      const Position p = c_position(lane, i);
      if constexpr (std::same_as<Accumulator, f16>)
        c[p.row][p.column] = element<f16>(lanes[lane]->c, i);
      else
        c[p.row][p.column] = std::bit_cast<float>(lanes[lane]->c[i]);
    }
  }
  const uint64_t seed = random(t);
  int order[K];
  for (int k = 0; k < K; ++k) order[k] = k;
  uint64_t bits = seed >> 2;
  if (seed != 0)
    for (int k = K - 1; k > 0; --k) {
      const int other = static_cast<int>(bits % (k + 1));
      bits /= k + 1;
      const int kept = order[k];
      order[k] = order[other];
      order[other] = kept;
    }
  const bool c_last = seed & 1, round_on_the_way = std::same_as<Accumulator, f16> && seed & 2;
  for (int row = 0; row < 16; ++row) {
    Row start;
    std::memcpy(&start, c[row], sizeof start);
    Row sum = c_last ? Row{} : start;
    for (int k = 0; k < K; ++k) {
      sum += a[row][order[k]] * b[order[k]];
      if (round_on_the_way && k % 4 == 3)
        for (int n = 0; n < 8; ++n) sum[n] = half_value<f16>(static_cast<uint16_t>(narrow<f16>(sum[n])));
    }
    if (c_last) sum += start;
    std::memcpy(c[row], &sum, sizeof sum);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const Position p = c_position(lane, i);
      const float value = c[p.row][p.column];
      if constexpr (std::same_as<Accumulator, f16>) {
        uint32_t& pair = lanes[lane]->c[i / 2];
        pair = (i % 2 ? pair & 0xffff : 0) | static_cast<uint32_t>(narrow<f16>(value)) << (16 * (i % 2));
      } else {
        lanes[lane]->c[i] = encode_as(f32{}, value);
      }
    }
}
// `registers`: D's, then A's, B's and C's
template <class T, class Accumulator, int K>
inline void mma(Thread& t, const Site& site, Fragments<T, K>& mine) {
  collective(t, site, kMatrixMultiply, 0xffffffff, true, mine, [&](Fragments<T, K>** lanes, uint32_t arrived) {
    if (arrived != 0xffffffff) fail(t, site, "mma needs all 32 lanes of the warp");
    multiply<T, Accumulator, K>(t, lanes);
    count(t, Half<T> ? Counter::mma_half : Counter::mma_tf32, 16 * 8 * K);
  });
}

}  // namespace sim::op
