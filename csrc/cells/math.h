// tanh and sigmoid, each formula once, for every value type.
//
// Both are quotients by 1 + e^-|x|, where e^x - 1 = 2^n p + (2^n - 1), x = n ln 2 + r, p ~ e^r - 1. Working on -|x|
// avoids overflow and the cancellation of 1 - e^x near 0. What each step rounds away is carried along and corrects the
// quotient once, so the error stays below 1.5 ulp (the tests ask for 2 over the whole range).
//
// A value type V brings: arithmetic with its scalar, mul_add(a, b, c), exact_mul_add (one rounding, whatever the chip),
// abs, max(a, b) (b where one is NaN), round_to_int(x) and pow2(n) (2^n for an integral n, exponent in range),
// copy_sign, select(condition, a, b).
#pragma once

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
  static constexpr int kDegree = 5;
  static constexpr float kPolynomial[] = {0x1p-1f,        0x1.555554p-3f,  0x1.55554cp-5f,
                                          0x1.111202p-7f, 0x1.6cee0cp-10f, 0x1.9f3698p-13f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kSmallestExponent = -1076;
  static constexpr double kTanhIsOne = 20;
  static constexpr int kDegree = 10;
  static constexpr double kPolynomial[] = {0x1p-1,
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

// A value and what rounding took from it.
template <class V>
struct Split {
  V value;
  V lost;
};

template <class V>
struct Reduced {
  V n;         // integral
  Split<V> p;  // e^r - 1
};

// x = n ln 2 + r
template <class V>
FASTRNN_FN Reduced<V> reduce_exp(V x) {
  using K = ExpConstants<Scalar<V>>;
  const V n = round_to_int(x * Scalar<V>(0x1.71547652b82fep+0));  // log2(e)
  const V r = mul_add(n, V(-K::kLn2Low), mul_add(n, V(-K::kLn2High), x));
  V q = V(K::kPolynomial[K::kDegree]);
  for (int i = K::kDegree - 1; i >= 0; --i) q = mul_add(q, r, V(K::kPolynomial[i]));
  const V p = mul_add(q, r * r, r);
  return {n, {p, mul_add(q, r * r, r - p)}};
}

// a * b + c
template <class V>
FASTRNN_FN Split<V> split_mul_add(V a, Split<V> b, V c) {
  const V value = mul_add(a, b.value, c);
  return {value, exact_mul_add(a, b.value, c - value) + a * b.lost};
}

// a / (1 + e) for 0 <= e <= 1: one step of Newton's from the rounded quotient, where a linear 1 / d on [1, 2] is near
// enough.
template <class V>
FASTRNN_FN V divide_by_one_plus(Split<V> e, Split<V> a) {
  using A = Scalar<V>;
  const V d = e.value + A(1);
  const V d_lost = (e.value - (d - A(1))) + e.lost;
  const V q = a.value / d;
  const V residual = exact_mul_add(-q, d, a.value) + (a.lost - q * d_lost);
  return mul_add(residual, mul_add(d, V(A(-0.5)), V(A(1.457))), q);
}

// tanh|x| = (1 - e) / (1 + e), e = e^-2|x|
template <class V>
FASTRNN_FN V tanh(V x) {
  using K = ExpConstants<Scalar<V>>;
  const auto [n, p] = reduce_exp(max(V(-2 * K::kTanhIsOne), Scalar<V>(-2) * abs(x)));
  const V scale = pow2(n);
  const Split<V> one_minus_e = split_mul_add(-scale, p, Scalar<V>(1) - scale);
  return copy_sign(divide_by_one_plus(split_mul_add(scale, p, scale), one_minus_e), x);
}

// sigmoid(x) = 1 / (1 + e) for x >= 0 and e / (1 + e) below, e = e^-|x|; e may be subnormal, so it is scaled twice
template <class V>
FASTRNN_FN V sigmoid(V x) {
  using K = ExpConstants<Scalar<V>>;
  const auto [n, p] = reduce_exp(max(V(K::kSmallestExponent * Scalar<V>(0x1.62e42fefa39efp-1)), -abs(x)));
  const V high = max(V(K::kSmallestExponent / 2), n);
  const V low_scale = pow2(n - high);
  const auto [scaled, lost] = split_mul_add(pow2(high), p, pow2(high));
  const Split<V> e = {scaled * low_scale, lost * low_scale};
  const auto negative = x < V(0);
  return divide_by_one_plus(e, {select(negative, e.value, V(1)), select(negative, e.lost, V(0))});
}

}  // namespace fastrnn::math
