// Fills the tables of one instruction set, which the file that includes this has named.
#pragma once

#include "cells/functions.h"
#include "cpu/vec.h"
#include "function_tables.h"

namespace fastrnn::FASTRNN_ISA {

// Two vectors side by side, as kernels have them.
template <class S>
using Value = Bundle<Vec<S>, 2>;

template <class S>
FASTRNN_FN Value<S> load(const S* p) {
  return Value<S>::of([&](int i) FASTRNN_LAMBDA { return Vec<S>::load(p + i * Vec<S>::kWidth); });
}

template <class S>
FASTRNN_FN void store(Value<S> v, S* p) {
  for (int i = 0; i < 2; ++i) v.part[i].store(p + i * Vec<S>::kWidth);
}

static_assert(test::kFull % (2 * Vec<float>::kWidth) == 0);

template <class S, class F>
void apply(const S* x, S* y, int64_t n) {
  for (int64_t j = 0; j < n; j += 2 * Vec<S>::kWidth) store(F{}(load(x + j)), y + j);
}

template <class S, class F>
void apply_to_pairs(const S* a, const S* b, S* y, int64_t n) {
  for (int64_t j = 0; j < n; j += 2 * Vec<S>::kWidth) store(F{}(load(a + j), load(b + j)), y + j);
}

template <class S, class F>
constexpr test::Function<S> function(std::string_view name, F) {
  return {name, apply<S, F>};
}

template <class S, class F>
constexpr test::BinaryFunction<S> binary_function(std::string_view name, F) {
  return {name, apply_to_pairs<S, F>};
}

// A comparison's name, and 1 where it holds, 0 elsewhere.
template <class S, class F>
constexpr test::BinaryFunction<S> comparison(std::string_view name, F) {
  return binary_function<S>(name, [](auto a, auto b) FASTRNN_LAMBDA {
    return select(F{}(a, b), math::constant<Value<S>>(1), math::constant<Value<S>>(0));
  });
}

template <class S>
constexpr test::Table<S> table() {
  return {{function<S>("exp", [](auto x) FASTRNN_LAMBDA { return math::exp(x); }),
           function<S>("log", [](auto x) FASTRNN_LAMBDA { return math::log(x); }),
           function<S>("softplus", [](auto x) FASTRNN_LAMBDA { return math::softplus(x); }),
           function<S>("sqrt", [](auto x) FASTRNN_LAMBDA { return math::sqrt(x); }),
           function<S>("erf", [](auto x) FASTRNN_LAMBDA { return math::erf(x); }),
           function<S>("abs", [](auto x) FASTRNN_LAMBDA { return math::abs(x); })},
          {binary_function<S>("minimum", [](auto a, auto b) FASTRNN_LAMBDA { return math::minimum(a, b); }),
           binary_function<S>("maximum", [](auto a, auto b) FASTRNN_LAMBDA { return math::maximum(a, b); }),
           binary_function<S>("/", [](auto a, auto b) FASTRNN_LAMBDA { return a / b; }),
           comparison<S>("<", [](auto a, auto b) FASTRNN_LAMBDA { return a < b; }),
           comparison<S>("<=", [](auto a, auto b) FASTRNN_LAMBDA { return a <= b; }),
           comparison<S>(">", [](auto a, auto b) FASTRNN_LAMBDA { return a > b; }),
           comparison<S>(">=", [](auto a, auto b) FASTRNN_LAMBDA { return a >= b; }),
           comparison<S>("==", [](auto a, auto b) FASTRNN_LAMBDA { return a == b; }),
           comparison<S>("!=", [](auto a, auto b) FASTRNN_LAMBDA { return a != b; })}};
}

constexpr test::FunctionsOfSet functions_of(const cpu::InstructionSet& set) {
  return {set, {table<float>(), table<double>(), table<Dual<float>>(), table<Dual<double>>()}};
}

}  // namespace fastrnn::FASTRNN_ISA
