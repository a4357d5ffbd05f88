// tanh and sigmoid, each formula once, for every value type.
//
// Both come from expm1 by one range reduction: e^x - 1 = 2^n p + (2^n - 1), x = n ln 2 + r, p ~ e^r - 1. Working on
// -|x| avoids overflow and the cancellation of 1 - e^x near 0, and the quotients by 1 + e^-|x| are corrected for the
// rounding of that sum; the error is below 2 ulp over the whole range.
//
// A value type V brings: arithmetic with its scalar, mul_add(a, b, c), abs, max(a, b) (b where one is NaN),
// round_to_int(x) and pow2(n) (2^n for an integral n, exponent in range), copy_sign, select(condition, a, b).
#pragma once

#include <array>

#include "dtypes.h"

namespace fastrnn::math {

template <class V>
using Scalar = typename V::Scalar;

// Coefficients of (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, minimax by relative error of e^r - 1
// (Remez exchange in 50 digits; 1.1e-9 for float, 2.6e-19 for double), and ln 2 in two parts.
template <class A>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kSmallestExponent = -152;  // 2^-152 rounds to 0; even, for it is halved
  static constexpr float kTanhIsOne = 10;           // tanh(x) = 1 to half an ulp from here on
  static constexpr std::array<float, 6> kPolynomial = {0x1p-1f,        0x1.555554p-3f,  0x1.55554cp-5f,
                                                       0x1.111202p-7f, 0x1.6cee0cp-10f, 0x1.9f3698p-13f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kSmallestExponent = -1076;
  static constexpr double kTanhIsOne = 20;
  static constexpr std::array<double, 11> kPolynomial = {0x1p-1,
                                                         0x1.5555555555559p-3,
                                                         0x1.555555555553ep-5,
                                                         0x1.111111110f6c5p-7,
                                                         0x1.6c16c16c1f102p-10,
                                                         0x1.a01a01afdd4cbp-13,
                                                         0x1.a01a017ba5d92p-16,
                                                         0x1.71ddf86467b44p-19,
                                                         0x1.27e5365c58449p-22,
                                                         0x1.af5ea7170df8bp-26,
                                                         0x1.1ee85ed36ed1ep-29};
};

template <class V>
struct Reduced {
  V n;  // integral
  V p;  // e^r - 1
};

// x = n ln 2 + r
template <class V>
FASTRNN_FN Reduced<V> reduce_exp(V x) {
  using K = ExpConstants<Scalar<V>>;
  const V n = round_to_int(x * Scalar<V>(0x1.71547652b82fep+0));  // log2(e)
  const V r = mul_add(n, V(-K::kLn2Low), mul_add(n, V(-K::kLn2High), x));
  V q = V(K::kPolynomial.back());
  for (int i = static_cast<int>(K::kPolynomial.size()) - 2; i >= 0; --i) q = mul_add(q, r, V(K::kPolynomial[i]));
  return {n, mul_add(q, r * r, r)};
}

// a / (1 + e) for 0 <= e <= 1, as if 1 + e were exact: one step of Newton's from the rounded quotient, where a linear
// 1 / d on [1, 2] is near enough.
template <class V>
FASTRNN_FN V divide_by_one_plus(V a, V e) {
  using A = Scalar<V>;
  const V d = e + A(1);
  const V rounding = e - (d - A(1));
  const V q = a / d;
  const V residual = mul_add(-q, rounding, mul_add(-q, d, a));
  return mul_add(residual, mul_add(d, V(A(-0.5)), V(A(1.457))), q);
}

// tanh|x| = -m / (2 + m) with m = e^(-2|x|) - 1 in (-1, 0]
template <class V>
FASTRNN_FN V tanh(V x) {
  using K = ExpConstants<Scalar<V>>;
  const auto [n, p] = reduce_exp(max(V(-2 * K::kTanhIsOne), Scalar<V>(-2) * abs(x)));
  const V scale = pow2(n);
  const V minus_m = mul_add(-scale, p, Scalar<V>(1) - scale);
  return copy_sign(divide_by_one_plus(minus_m, mul_add(scale, p, scale)), x);
}

// sigmoid(x) = 1 / (1 + e) for x >= 0 and e / (1 + e) below, e = e^-|x|; e may be subnormal, so it is scaled twice
template <class V>
FASTRNN_FN V sigmoid(V x) {
  using K = ExpConstants<Scalar<V>>;
  const auto [n, p] = reduce_exp(max(V(K::kSmallestExponent * Scalar<V>(0x1.62e42fefa39efp-1)), -abs(x)));
  const V high = max(V(K::kSmallestExponent / 2), n);
  const V scale = pow2(high);
  const V e = mul_add(scale, p, scale) * pow2(n - high);
  return divide_by_one_plus(select(x < V(0), e, V(1)), e);
}

}  // namespace fastrnn::math
