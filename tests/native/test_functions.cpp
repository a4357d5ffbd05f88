// exp, log, softplus, sqrt, erf and what else cells call, of every instruction set: at most 2 ulp from the true value
// for floats and doubles, and derivatives as torch has them.
//
// Every function is tried with all floats where they differ in more than their rounding, and with one of 61 elsewhere;
// with an argument k only with every k-th of these (emulators are slow).
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <random>

#include "check.h"
#include "errors.h"
#include "function_tables.h"

namespace fastrnn::test {
namespace {

constexpr double kMostUlp = 2;

// E is a wider type than the one that is tested.
template <class E>
struct Exact {
  std::string_view name;
  E (*value)(E);
  E (*derivative)(E);
  float from, to;  // all floats of this magnitude are tried
};

template <class E>
const Exact<E>& exact_of(std::string_view name) {
  static constexpr E kTwoBySqrtPi = 1.128379167095512573896158903121545172L;
  static const std::array<Exact<E>, 6> all{{
      {"exp", [](E x) { return std::exp(x); }, [](E x) { return std::exp(x); }, 0x1p-26, 0x1p7},
      {"log", [](E x) { return std::log(x); }, [](E x) { return 1 / x; }, 0x1p-8, 0x1p8},
      {"softplus", [](E x) { return x > 20 ? x : std::log1p(std::exp(x)); },
       [](E x) { return x > 20 ? 1 : 1 / (1 + std::exp(-x)); }, 0x1p-26, 0x1p7},
      {"sqrt", [](E x) { return std::sqrt(x); }, [](E x) { return 1 / (2 * std::sqrt(x)); }, 1, 4},
      {"erf", [](E x) { return std::erf(x); }, [](E x) { return kTwoBySqrtPi * std::exp(-x * x); }, 0x1p-13, 4},
      {"abs", [](E x) { return std::abs(x); }, [](E x) { return E(x > 0) - E(x < 0); }, 1, 2},
  }};
  return *std::find_if(all.begin(), all.end(), [name](const Exact<E>& one) { return one.name == name; });
}

std::vector<const FunctionsOfSet*> runnable() {
  std::vector<const FunctionsOfSet*> sets{
#if defined(__x86_64__)
      &kAvx512Functions, &kAvx2Functions,
#elif defined(__aarch64__)
      &kNeonFunctions,
#endif
      &kPlainFunctions};
  std::erase_if(sets, [](const FunctionsOfSet* one) { return !one->set.runs_here(); });
  return sets;
}

template <class S>
const Table<S>& table(const FunctionsOfSet& functions) {
  return std::get<Table<S>>(functions.tables);
}

template <class S>
std::vector<S> run(const Function<S>& function, std::vector<S> x) {
  const std::size_t n = x.size();
  x.resize((n + kFull - 1) / kFull * kFull);
  std::vector<S> y(x.size());
  function.run(x.data(), y.data(), x.size());
  y.resize(n);
  return y;
}

template <class S>
std::vector<S> run(const BinaryFunction<S>& function, std::vector<S> a, std::vector<S> b) {
  const std::size_t n = a.size();
  a.resize((n + kFull - 1) / kFull * kFull);
  b.resize(a.size());
  std::vector<S> y(a.size());
  function.run(a.data(), b.data(), y.data(), a.size());
  y.resize(n);
  return y;
}

template <class A>
void check_worst(const Worst<A>& worst, const std::string& name) {
  std::printf("%s: %.3f ulp at most, at %a\n", name.c_str(), worst.ulp, worst.at);
  check(worst.ulp <= kMostUlp, name);
}

// --- every float ---------------------------------------------------------------------------------------

// Floats by their bits: begin, begin + stride, ...
struct Sweep {
  uint64_t begin, end, stride;
};

// Tries a function of all sets, and merges the errors of each.
void sweep(std::size_t function, const Sweep& floats, const std::vector<const FunctionsOfSet*>& sets,
           std::vector<Worst<float>>& worst) {
  constexpr uint64_t kBlock = 1 << 12;
  static_assert(kBlock % kFull == 0);
  const Exact<double>& exact = exact_of<double>(table<float>(*sets[0]).functions[function].name);
  const uint64_t blocks = (floats.end - floats.begin) / floats.stride / kBlock + 1;
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::mutex lock;
  fork_threads(threads, [&](int64_t first, int64_t) {
    std::vector<float> x(kBlock), y(kBlock);
    std::vector<double> expected(kBlock);
    std::vector<Worst<float>> mine(sets.size());
    for (uint64_t b = first; b < blocks; b += threads) {
      for (uint64_t i = 0; i < kBlock; ++i) {
        const uint64_t bits = floats.begin + (b * kBlock + i) * floats.stride;
        x[i] = std::bit_cast<float>(static_cast<uint32_t>(std::min(bits, floats.end - 1)));
        expected[i] = exact.value(x[i]);
      }
      for (std::size_t s = 0; s < sets.size(); ++s) {
        table<float>(*sets[s]).functions[function].run(x.data(), y.data(), kBlock);
        for (uint64_t i = 0; i < kBlock; ++i) mine[s].merge({ulps_off(y[i], expected[i]), x[i]});
      }
    }
    const std::lock_guard guard(lock);
    for (std::size_t s = 0; s < sets.size(); ++s) worst[s].merge(mine[s]);
  });
}

void check_floats(const std::vector<const FunctionsOfSet*>& sets, uint64_t stride) {
  constexpr uint64_t kSparse = 61, kSign = uint64_t{1} << 31;
  const auto& functions = table<float>(*sets[0]).functions;
  for (std::size_t f = 0; f < functions.size(); ++f) {
    const Exact<double>& exact = exact_of<double>(functions[f].name);
    const uint64_t from = std::bit_cast<uint32_t>(exact.from), to = std::bit_cast<uint32_t>(exact.to);
    std::vector<Worst<float>> worst(sets.size());
    sweep(f, {from, to, stride}, sets, worst);
    sweep(f, {kSign + from, kSign + to, stride}, sets, worst);
    sweep(f, {0, 2 * kSign, kSparse * stride}, sets, worst);
    for (std::size_t s = 0; s < sets.size(); ++s)
      check_worst(worst[s], std::string(sets[s]->set.name) + " " + std::string(functions[f].name) + " of floats");
  }
}

// --- doubles, and what is special ----------------------------------------------------------------------

// Numbers of all magnitudes, of those where functions bend, and around 1.
std::vector<double> sampled_doubles() {
  constexpr int kEach = 20000;
  std::mt19937_64 bits(1);
  std::uniform_real_distribution<double> any(-1074, 1024), bending(-20, 10), near(-0.5, 0.5);
  std::vector<double> x;
  for (int i = 0; i < kEach; ++i) {
    const double sign = i % 2 ? 1 : -1;
    x.push_back(sign * std::exp2(any(bits)));
    x.push_back(sign * std::exp2(bending(bits)));
    x.push_back(sign * (1 + std::ldexp(near(bits), -i % 50)));
  }
  return x;
}

template <class A>
std::vector<A> special_numbers() {
  using Limits = std::numeric_limits<A>;
  std::vector<A> x;
  for (const A one : {A(0), Limits::denorm_min(), Limits::min(), A(0.5), A(1), A(4), A(20), A(21), Limits::max(),
                      Limits::infinity(), Limits::quiet_NaN()}) {
    x.push_back(one);
    x.push_back(-one);
  }
  return x;
}

template <class A, class E>
void check_values(const FunctionsOfSet& set, const std::vector<A>& x, const std::string& what) {
  for (const Function<A>& function : table<A>(set).functions) {
    const std::vector<A> y = run(function, x);
    Worst<A> worst;
    for (std::size_t i = 0; i < x.size(); ++i)
      worst.merge({ulps_off(y[i], exact_of<E>(function.name).value(x[i])), x[i]});
    check_worst(worst, std::string(set.set.name) + " " + std::string(function.name) + " of " + what);
  }
}

// --- functions of two numbers --------------------------------------------------------------------------

template <class A>
A exact_of_pair(std::string_view name, A a, A b) {
  if (name == "/") return a / b;
  if (name == "<") return a < b;
  if (name == "<=") return a <= b;
  if (name == ">") return a > b;
  if (name == ">=") return a >= b;
  if (name == "==") return a == b;
  if (name == "!=") return a != b;
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<A>::quiet_NaN();
  return name == "minimum" ? std::min(a, b) : std::max(a, b);
}

template <class A>
void check_pairs(const FunctionsOfSet& set) {
  std::vector<A> a, b;
  for (const A one : special_numbers<A>())
    for (const A other : special_numbers<A>()) {
      a.push_back(one);
      b.push_back(other);
    }
  for (const BinaryFunction<A>& function : table<A>(set).binary_functions) {
    const std::vector<A> y = run(function, a, b);
    for (std::size_t i = 0; i < a.size(); ++i) {
      const A expected = exact_of_pair(function.name, a[i], b[i]);
      check(y[i] == expected || (std::isnan(y[i]) && std::isnan(expected)),
            std::string(set.set.name) + ": " + std::to_string(a[i]) + " " + std::string(function.name) + " " +
                std::to_string(b[i]));
    }
  }
}

// --- derivatives ---------------------------------------------------------------------------------------

template <class A>
bool is_near(A actual, long double expected) {
  using Limits = std::numeric_limits<A>;
  return actual == static_cast<A>(expected) ||
         std::abs(actual - expected) <= 64 * Limits::epsilon() * std::abs(expected) + Limits::min();
}

// The value of a dual has the bits of the value alone, and the tangent is the derivative's multiple.
template <class A>
void check_derivatives(const FunctionsOfSet& set) {
  constexpr A kTangent = -3;
  std::vector<A> x;
  for (A at = -3; at <= 25; at += A(0.125)) x.push_back(at);
  std::vector<Dual<A>> duals;
  for (const A at : x) duals.emplace_back(at, kTangent);
  for (std::size_t f = 0; f < table<A>(set).functions.size(); ++f) {
    const Function<Dual<A>>& function = table<Dual<A>>(set).functions[f];
    const Exact<long double>& exact = exact_of<long double>(function.name);
    const std::vector<A> y = run(table<A>(set).functions[f], x);
    const std::vector<Dual<A>> dual = run(function, duals);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::string name =
          std::string(set.set.name) + " " + std::string(function.name) + " of a dual at " + std::to_string(x[i]);
      if (std::isnan(y[i])) {
        check(std::isnan(dual[i].value), name);
        continue;
      }
      check(dual[i].value == y[i], name);
      check(is_near(dual[i].tangent, kTangent * exact.derivative(x[i])), name + ": its derivative");
    }
  }
}

template <class A>
void check_derivatives_of_pairs(const FunctionsOfSet& set) {
  struct Case {
    std::string_view name;
    Dual<A> a, b, expected;
  };
  const Case cases[] = {
      {"minimum", {1, 10}, {2, 20}, {1, 10}}, {"minimum", {2, 10}, {1, 20}, {1, 20}},
      {"minimum", {1, 10}, {1, 20}, {1, 15}}, {"maximum", {1, 10}, {2, 20}, {2, 20}},
      {"maximum", {2, 10}, {1, 20}, {2, 10}}, {"maximum", {1, 10}, {1, 20}, {1, 15}},
      {"/", {3, 10}, {4, 20}, {0.75, -1.25}}, {"<", {1, 10}, {1, 20}, {0, 0}},
      {"<=", {1, 20}, {1, 10}, {1, 0}},       {">", {1, 20}, {1, 10}, {0, 0}},
      {">=", {1, 10}, {1, 20}, {1, 0}},       {"==", {1, 10}, {1, 20}, {1, 0}},
      {"!=", {1, 10}, {1, 20}, {0, 0}},
  };
  for (const BinaryFunction<Dual<A>>& function : table<Dual<A>>(set).binary_functions)
    for (const Case& one : cases) {
      if (one.name != function.name) continue;
      const Dual<A> y = run(function, {one.a}, {one.b})[0];
      check(y.value == one.expected.value && y.tangent == one.expected.tangent,
            std::string(set.set.name) + ": " + std::string(one.name) + " of duals");
    }
}

template <class A, class E>
void check_type(const FunctionsOfSet& set, const std::string& name) {
  check_values<A, E>(set, special_numbers<A>(), "special " + name);
  check_pairs<A>(set);
  check_derivatives<A>(set);
  check_derivatives_of_pairs<A>(set);
}

}  // namespace
}  // namespace fastrnn::test

int main(int argc, char** argv) {
  using namespace fastrnn::test;
  const auto sets = runnable();
  for (const FunctionsOfSet* set : sets) {
    check_type<float, double>(*set, "floats");
    check_type<double, long double>(*set, "doubles");
    check_values<double, long double>(*set, sampled_doubles(), "doubles");
  }
  check_floats(sets, argc > 1 ? std::atoll(argv[1]) : 1);
  return finish();
}
