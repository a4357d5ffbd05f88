// What cells of users call beside tanh and sigmoid, each formula once, for every value type of the CPU kernels.
//
// exp and log reduce their argument to a power of two times a number near 1. The other functions rest on these two:
// softplus(x) = max(x, 0) + log(1 + e^-|x|), and erf is 1 - e^-g with a polynomial g where it nears 1. Errors stay
// below 2 ulp over the whole range (tests try the floats). NaN passes, and derivatives at ties and kinks are torch's.
//
// Beyond what math.h asks for, a value type V brings: quotients and comparisons, square_root, exponent(x) and
// mantissa(x) (x = mantissa * 2^exponent with a mantissa in [sqrt(1/2), sqrt(2)), for a normal x > 0).
#pragma once

#include <limits>

#include "cells/math.h"
#include "dtypes.h"

namespace fastrnn::math {

// A number in the precision of V.
template <class V>
FASTRNN_FN V constant(double x) {
  return V(static_cast<Scalar<V>>(x));
}

template <class A>
struct ExpRange;

// From these arguments on, e^x is 0 or infinite.
template <>
struct ExpRange<float> {
  static constexpr float kIsZero = ExpConstants<float>::kSigmoidIsZero, kIsInfinite = 89;
};

template <>
struct ExpRange<double> {
  static constexpr double kIsZero = ExpConstants<double>::kSigmoidIsZero, kIsInfinite = 710;
};

// Coefficients of R(z) / z, log((1 + s) / (1 - s)) = s (2 + R(s^2)), on |s| <= (sqrt(2) - 1) / (sqrt(2) + 1), minimax
// by relative error of the logarithm (Remez exchange in 60 digits; 8.1e-10 for float, 1.2e-18 for double).
template <class A>
struct LogConstants;

template <>
struct LogConstants<float> {
  static constexpr int kDegree = 2;
  static constexpr float kPolynomial[] = {0x1.55557ap-1f, 0x1.995ebap-2f, 0x1.31e2f2p-2f};
};

template <>
struct LogConstants<double> {
  static constexpr int kDegree = 6;
  static constexpr double kPolynomial[] = {0x1.5555555555592p-1, 0x1.999999997fdb5p-2, 0x1.24924941f1475p-2,
                                           0x1.c71c520944926p-3, 0x1.74663eecb9006p-3, 0x1.39a1ba5a1036p-3,
                                           0x1.2f05669629b25p-3};
};

// Coefficients of erf(x) / x - 1 in x^2 on |x| <= 1, minimax by relative error of erf(x) (Remez exchange in 60 digits;
// 1.2e-9 for float, 7.3e-18 for double).
template <class A>
struct ErfNearConstants;

template <>
struct ErfNearConstants<float> {
  static constexpr int kDegree = 6;
  static constexpr float kPolynomial[] = {0x1.06eba8p-3f, -0x1.81273ep-2f,  0x1.ce2cf8p-4f, -0x1.b7f90ep-6f,
                                          0x1.5405b2p-8f, -0x1.a3f706p-11f, 0x1.496a42p-14f};
};

template <>
struct ErfNearConstants<double> {
  static constexpr int kDegree = 11;
  static constexpr double kPolynomial[] = {0x1.06eba8214db68p-3,  -0x1.812746b0379bdp-2,  0x1.ce2f21a040d16p-4,
                                           -0x1.b82ce311fa95p-6,  0x1.565bccf92b4cep-8,   -0x1.c02db03dda8f4p-11,
                                           0x1.f9a2baa941ec3p-14, -0x1.f4ca4d72a1be7p-17, 0x1.b97fd3f6938fcp-20,
                                           -0x1.5c07278e0b47p-23, 0x1.d71b12f513174p-27,  -0x1.abae539fa4ec4p-31};
};

// Coefficients of -log(1 - erf(1 + u)) on 0 <= u <= kErfIsOne - 1, minimax by absolute error of erf
// (Remez exchange in 60 digits; 1.1e-9 for float, 6.6e-18 for double).
template <class A>
struct ErfFarConstants;

template <>
struct ErfFarConstants<float> {
  static constexpr float kErfIsOne = 3.9375;  // to half an ulp, from here on
  static constexpr int kDegree = 6;
  static constexpr float kPolynomial[] = {0x1.d97fcp+0f,   0x1.51c9aap+1f,  0x1.afad34p-1f,  0x1.53f94p-5f,
                                          -0x1.441accp-7f, 0x1.deb798p-10f, -0x1.852ceap-13f};
};

template <>
struct ErfFarConstants<double> {
  static constexpr double kErfIsOne = 6;
  static constexpr int kDegree = 17;
  static constexpr double kPolynomial[] = {0x1.d97fbf27aa2a1p+0,   0x1.51c9b0006c21ap+1,   0x1.afabc11a2afd9p-1,
                                           0x1.5477f099b6cd7p-5,   -0x1.48c9d37fc294ep-7,  0x1.033f5a13037c4p-9,
                                           -0x1.f1b04a8f95102p-13, -0x1.b92dd98b82de8p-16, 0x1.c852aa5d0b717p-16,
                                           -0x1.44846591aa776p-17, 0x1.1e247a1d1574cp-19,  -0x1.b7cf8091f298p-23,
                                           -0x1.f25bd39f25948p-25, 0x1.1ed86b501a3b5p-25,  -0x1.24b8861ec879fp-27,
                                           0x1.6a9e3377d97ffp-30,  -0x1.066c12081174ep-33, 0x1.5660dcc0b9bf3p-38};
};

template <class V>
FASTRNN_FN V exp(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    return lift(x, exp(value(x)), [](auto y) FASTRNN_LAMBDA { return y; });
  } else {
    using K = ExpRange<A>;
    const auto [shifted, r] = reduce(min(V(K::kIsInfinite), max(V(K::kIsZero), x)));
    // Where 2^n is no number, its two factors still are.
    const V n = shifted - V(V::kToExponent);
    const V shifted_half = mul_add(n, V(A(0.5)), V(V::kToExponent));
    const V half = shifted_half - V(V::kToExponent);
    return (A(1) + expm1(r).value) * exponent_from_mantissa(shifted_half) * exponent_from_mantissa(shifted - half);
  }
}

// n ln 2 + log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]. With s = f / (2 + f) the logarithm is
// f - f^2 / 2 + s (f^2 / 2 + R(s^2)), whose first term is exact.
template <class V>
FASTRNN_FN V log_of_reduced(V n, V f) {
  using A = Scalar<V>;
  using K = ExpConstants<A>;
  const V s = f / (A(2) + f);
  const V z = s * s;
  const V half_square = A(0.5) * f * f;
  const V correction = mul_add(s, mul_add(z, horner<LogConstants<A>>(z), half_square), n * V(K::kLn2Low));
  return mul_add(n, V(K::kLn2High), f - (half_square - correction));
}

template <class V>
FASTRNN_FN V log(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    const auto at = value(x);
    return lift(x, log(at), [at](auto) FASTRNN_LAMBDA { return A(1) / at; });
  } else {
    using Limits = std::numeric_limits<A>;
    const auto subnormal = x < V(Limits::min());
    const V normal = select(subnormal, x * V(A(0x1p64)), x);
    const V n = exponent(normal) - select(subnormal, V(A(64)), V(A(0)));
    const V finite = log_of_reduced(n, mantissa(normal) - A(1));
    const V not_positive = select(x == V(A(0)), V(-Limits::infinity()), V(Limits::quiet_NaN()));
    return select(x > V(A(0)), select(x < V(Limits::infinity()), finite, x), not_positive);
  }
}

// log(1 + e) for e in [0, 1]. Where 1 + e exceeds sqrt(2), it is twice 1 + (e - 1) / 2.
template <class V>
FASTRNN_FN V log1p(V e) {
  using A = Scalar<V>;
  const auto halve = e > V(A(0x1.a827999fcef32p-2));  // sqrt(2) - 1
  return log_of_reduced(select(halve, V(A(1)), V(A(0))), select(halve, A(0.5) * (e - A(1)), e));
}

// log(1 + e^x), and x where x > 20, as torch has it.
template <class V>
FASTRNN_FN V softplus(V x) {
  using A = Scalar<V>;
  constexpr A kThreshold = 20;
  if constexpr (OverDuals<V>) {
    const auto at = value(x);
    using Value = decltype(value(x));
    return lift(x, softplus(at),
                [at](auto) FASTRNN_LAMBDA { return select(at > Value(kThreshold), Value(A(1)), sigmoid(at)); });
  } else {
    return select(x > V(kThreshold), x, max(V(A(0)), x) + log1p(exp(-abs(x))));
  }
}

template <class V>
FASTRNN_FN V sqrt(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    return lift(x, sqrt(value(x)), [](auto y) FASTRNN_LAMBDA { return A(0.5) / y; });
  } else {
    return square_root(x);
  }
}

template <class V>
FASTRNN_FN V erf(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    const auto at = value(x);
    constexpr A kSlope = 0x1.20dd750429b6dp+0;  // 2 / sqrt(pi), erf'(0)
    return lift(x, erf(at), [at](auto) FASTRNN_LAMBDA { return kSlope * exp(-at * at); });
  } else {
    using Far = ErfFarConstants<A>;
    const V a = min(V(Far::kErfIsOne), abs(x));
    const V near = mul_add(a, horner<ErfNearConstants<A>>(a * a), a);
    const V far = A(1) - exp(-horner<Far>(a - A(1)));
    return copy_sign(select(a < V(A(1)), near, far), x);
  }
}

// |x|, whose derivative at 0 is 0.
template <class V>
FASTRNN_FN V abs(V x) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    const auto at = value(x);
    using Value = decltype(value(x));
    return lift(x, abs(at), [at](auto y) FASTRNN_LAMBDA {
      return select(y == Value(A(0)), Value(A(0)), copy_sign(Value(A(1)), at));
    });
  } else {
    return abs(x);
  }
}

// The smaller of a and b. Where they are equal, the derivative is the mean of both.
template <class V>
FASTRNN_FN V minimum(V a, V b) {
  using A = Scalar<V>;
  if constexpr (OverDuals<V>) {
    const auto at_a = value(a), at_b = value(b);
    const auto mean = A(0.5) * (tangent(a) + tangent(b));
    const auto of_smaller = select(at_a < at_b, tangent(a), tangent(b));
    return V::join(minimum(at_a, at_b), select(at_a == at_b, mean, of_smaller));
  } else {
    return select(a != a, a, min(a, b));
  }
}

template <class V>
FASTRNN_FN V maximum(V a, V b) {
  return -minimum(-a, -b);
}

}  // namespace fastrnn::math
