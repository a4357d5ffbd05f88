// How far a result lies from the true value, in units in the last place of its type.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastrnn::test {

// Infinite where one of the two is NaN or overflows and the other does not. `Exact` is a wider type than A.
template <class A, class Exact>
double ulps_off(A actual, Exact exact) {
  using Limits = std::numeric_limits<A>;
  if (actual == static_cast<A>(exact) || (std::isnan(actual) && std::isnan(exact))) return 0;
  if (!std::isfinite(actual) || !std::isfinite(static_cast<A>(exact))) return std::numeric_limits<double>::infinity();
  // 0 and subnormal numbers are as far apart as the least normal ones.
  constexpr int kBias = 1023, kMantissaBits = 52;
  constexpr uint64_t kLeastExponent = kBias + Limits::min_exponent - 1;
  const uint64_t exponent = std::bit_cast<uint64_t>(static_cast<double>(exact)) >> kMantissaBits & 0x7ff;
  const double power = std::bit_cast<double>(std::max(exponent, kLeastExponent) << kMantissaBits);
  return static_cast<double>(std::abs(actual - exact) / Exact(Limits::epsilon()) / power);
}

template <class A>
struct Worst {
  double ulp = 0;
  A at = 0;

  void merge(const Worst& other) {
    if (other.ulp > ulp) *this = other;
  }
};

}  // namespace fastrnn::test
