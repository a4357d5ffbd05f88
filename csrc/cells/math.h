// tanh and sigmoid, each formula once, for every value type.
//
// Both are quotients in e^z = 2^n (1 + p), z = n ln 2 + r, p ~ e^r - 1, arranged so that nothing cancels or overflows:
// tanh|x| = -u / (2 + u) with u = e^-2|x| - 1, sigmoid(x) = 2^n / (2^n + e^-r). What rounding takes from the
// numerator and denominator is carried along, and one step of Newton's turns an estimated quotient into a rounded one:
// the error stays below 2 ulp over the whole range (tests try every float).
//
// A value type V brings: arithmetic with its scalar, mul_add(a, b, c) and neg_mul_add (c - a * b), exact_neg_mul_add
// (one rounding, whatever the chip), abs, copy_sign, max(a, b) and min(a, b) (b where one is NaN), reciprocal (13 bits
// or more of 1 / x), select(condition, a, b), kToExponent (adding it leaves the nearest integer in the low bits of the
// mantissa, biased as an exponent) and exponent_from_mantissa (2^n from what that sum is for n). One over dual numbers
// brings value(x), tangent(x) and join(value, tangent) instead of what only exponentials need.
#pragma once

#include "cells/dual.h"
#include "dtypes.h"

namespace fastrnn::math {

template <class V>
using Scalar = typename V::Scalar;

template <class V>
concept OverDuals = requires(V x) { V::join(value(x), tangent(x)); };

// Over numbers whose storage is coarser than a special function unit: both are then quotients in approximate_exp2(x),
// 2^x to 2 ulp, and reciprocal(x), 1 / x to 1 ulp, as PTX gives them. The error stays below 4e-7 absolutely, for tanh,
// and below 3e-6 relatively, for sigmoid (its exponent's rounding grows with |x|): an eighth of the last place of fp16.
template <class V>
concept Approximates = requires { requires V::kApproximates; };

// phi of a dual number, from its value y and phi' as a function of y.
template <class V, class Y, class Derivative>
FASTRNN_FN V lift(V x, Y y, Derivative&& derivative) {
  return V::join(y, derivative(y) * tangent(x));
}

// Coefficients of (e^r - 1 - r) / r^2 on |r| <= ln(2)/2, minimax by relative error of e^r - 1
// (Remez exchange in 50 digits; 1.1e-9 for float, 2.6e-19 for double), and ln 2 in two parts.
template <class A>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kTanhIsOne = 10;  // tanh(x) and sigmoid(2 x) are 1 to half an ulp from here on
  static constexpr float kSigmoidIsZero = -104;
  static constexpr float kSigmoidIsSubnormal = -87;
  static constexpr int kDegree = 5;
  static constexpr float kPolynomial[] = {0x1p-1f,        0x1.555554p-3f,  0x1.55554cp-5f,
                                          0x1.111202p-7f, 0x1.6cee0cp-10f, 0x1.9f3698p-13f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kTanhIsOne = 20;
  static constexpr double kSigmoidIsZero = -746;
  static constexpr double kSigmoidIsSubnormal = -708;
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

// z = n ln 2 + r
template <class V>
struct Reduced {
  V shifted;  // n + kToExponent
  V r;
};

template <class V>
FASTRNN_FN Reduced<V> reduce(V z) {
  using K = ExpConstants<Scalar<V>>;
  const V shifted = mul_add(z, V(Scalar<V>(0x1.71547652b82fep+0)), V(V::kToExponent));  // log2(e)
  const V n = shifted - V(V::kToExponent);
  return {shifted, neg_mul_add(n, V(K::kLn2Low), neg_mul_add(n, V(K::kLn2High), z))};
}

// A value and what rounding took from it.
template <class V>
struct Split {
  V value;
  V lost;
};

// The polynomial's terms from the i-th on, over r^i. Unrolled by name: device code may read constants, but no array of
// them.
template <class K, int i = 0, class V>
FASTRNN_FN V horner(V r) {
  constexpr Scalar<V> kCoefficient = K::kPolynomial[i];
  if constexpr (i == K::kDegree)
    return V(kCoefficient);
  else
    return mul_add(horner<K, i + 1>(r), r, V(kCoefficient));
}

// e^r - 1
template <class V>
FASTRNN_FN Split<V> expm1(V r) {
  const V q = horner<ExpConstants<Scalar<V>>>(r);
  const V square = r * r;
  const V p = mul_add(q, square, r);
  return {p, mul_add(q, square, r - p)};
}

// a / (b + c) for |b| >= |c|
template <class V>
FASTRNN_FN V divide_by_sum(Split<V> a, V b, V c) {
  const V d = b + c;
  const V d_lost = c - (d - b);
  const V inverse = reciprocal(d);
  const V q = a.value * inverse;
  const V residual = exact_neg_mul_add(q, d, a.value) + a.lost;
  return mul_add(neg_mul_add(q, d_lost, residual), inverse, q);
}

template <class V>
FASTRNN_FN V sigmoid(V x);

template <class V>
FASTRNN_FN V tanh(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    return lift(x, tanh(value(x)), [](auto y) FASTRNN_LAMBDA { return 1 - y * y; });
  } else if constexpr (Approximates<V>) {
    return mul_add(V(A(2)), sigmoid(A(2) * x), V(A(-1)));
  } else {
    const auto [shifted, r] = reduce(max(V(-2 * ExpConstants<A>::kTanhIsOne), A(-2) * abs(x)));
    const V scale = exponent_from_mantissa(shifted);
    const V scale_minus_one = scale - A(1);
    const auto [p, p_lost] = expm1(r);
    const V u = mul_add(scale, p, scale_minus_one);
    const V u_lost = mul_add(scale, p_lost, mul_add(scale, p, scale_minus_one - u));
    return copy_sign(divide_by_sum({u, u_lost}, V(A(2)), u), x);
  }
}

template <class V>
FASTRNN_FN V sigmoid(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    return lift(x, sigmoid(value(x)), [](auto y) FASTRNN_LAMBDA { return y * (1 - y); });
  } else if constexpr (Approximates<V>) {
    return reciprocal(A(1) + approximate_exp2(x * A(-0x1.71547652b82fep+0)));  // log2(e)
  } else {
    using K = ExpConstants<A>;
    const auto [shifted, r] = reduce(min(V(2 * K::kTanhIsOne), max(V(K::kSigmoidIsZero), x)));
    // Where the result is subnormal it is computed a power of two too large.
    constexpr A kLift = 64;
    const auto subnormal = x < V(K::kSigmoidIsSubnormal);
    const V lowered = select(subnormal, V(A(0x1p-64)), V(A(1)));
    const V lifted = exponent_from_mantissa(shifted + select(subnormal, V(kLift), V(A(0))));
    return lowered * divide_by_sum({lifted, V(A(0))}, mul_add(lifted, lowered, V(A(1))), expm1(-r).value);
  }
}

}  // namespace fastrnn::math
