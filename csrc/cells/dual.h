// Arithmetic of dual numbers a + b e with e^2 = 0: a value and its derivative along one direction.
//
// A kernel run on duals gives the directional derivative of all it computes, by the formulas it already has: the scan
// on duals is its forward-mode derivative, the backward pass on duals gives the second derivatives.
#pragma once

#include "dtypes.h"

namespace fastrnn {

// Arithmetic of a type D made of `value` and `tangent`: a number, or a vector of them.
template <class D>
struct DualArithmetic {
  FASTRNN_FN friend D operator+(D a, D b) { return {a.value + b.value, a.tangent + b.tangent}; }
  FASTRNN_FN friend D operator-(D a, D b) { return {a.value - b.value, a.tangent - b.tangent}; }
  FASTRNN_FN friend D operator-(D a) { return {-a.value, -a.tangent}; }
  FASTRNN_FN friend D operator*(D a, D b) {
    return {a.value * b.value, mul_add(a.value, b.tangent, a.tangent * b.value)};
  }
  FASTRNN_FN friend D operator/(D a, D b) {
    const auto quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  // Returns a * b + c.
  FASTRNN_FN friend D mul_add(D a, D b, D c) {
    return {mul_add(a.value, b.value, c.value), mul_add(a.value, b.tangent, mul_add(a.tangent, b.value, c.tangent))};
  }
};

}  // namespace fastrnn
