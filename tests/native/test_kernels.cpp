// Every kernel against a scalar oracle, without torch. Forward is compared value by value; the gradients of the double
// kernels with the oracle's slope along random directions, those of the other types with the double kernels', and dual
// numbers' tangents with differences of the double kernels' results.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <type_traits>

#include "check.h"
#include "oracle.h"

namespace fastrnn::test {
namespace {

constexpr int kTensors = 8;
constexpr const char* kTensorNames[kTensors] = {"x", "h_0", "c_0", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};

template <class P>
auto tensors(P& p) {
  return std::array{&p.x, &p.h_0, &p.c_0, &p.w_ih, &p.w_hh, &p.b_ih, &p.b_hh, &p.w_hr};
}

struct Sizes {
  int64_t T, N, I, H, R;
};

Problem make_problem(const std::string& cell, Sizes size, bool ragged, bool reset, bool reverse) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  Problem p{cell, size.T, size.N, size.I, size.H, size.R, reverse, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  for (int64_t n = 0; n < p.N; ++n) p.lengths.push_back(ragged ? (n * 5 + 2) % (p.T + 1) : p.T);
  if (reset)
    for (int64_t i = 0; i < p.T * p.N; ++i) p.reset.push_back(random() % 5 == 0);
  const auto fill = [&](Values& values, int64_t n, double scale) {
    values.resize(n);
    for (double& v : values) v = std::bit_cast<double>(std::bit_cast<uint64_t>(normal(random) * scale) >> 45 << 45);
  };
  const int64_t rows = p.gates() * p.H;
  const double scale = 1 / std::sqrt(static_cast<double>(p.H));
  fill(p.x, p.T * p.N * p.I, 1);
  fill(p.h_0, p.N * p.R, 1);
  fill(p.c_0, cell == "lstm" ? p.N * p.H : 0, 1);
  p.c_0.resize(p.N * p.H);
  fill(p.w_ih, rows * p.I, scale);
  fill(p.w_hh, rows * p.R, scale);
  fill(p.b_ih, rows, scale);
  fill(p.b_hh, rows, scale);
  fill(p.w_hr, p.projected() ? p.R * p.H : 0, scale);
  return p;
}

// Dual numbers differentiate along this direction; the i-th value of every tensor has the same.
double direction(std::size_t i) { return std::cos(static_cast<double>(i + 1)); }

// cast() makes values of a storage type, and uncast() doubles of them.
template <class S>
std::vector<S> cast(const Values& values) {
  std::vector<S> out;
  for (double v : values) out.push_back(Storage<S>::from(static_cast<Accumulate<S>>(v)));
  return out;
}

// Casts values that are differentiated: duals get a direction as their tangents.
template <class S>
std::vector<S> cast_along(const Values& values) {
  std::vector<S> out = cast<S>(values);
  if constexpr (kDual<S>)
    for (std::size_t i = 0; i < out.size(); ++i) out[i].tangent = static_cast<decltype(out[i].tangent)>(direction(i));
  return out;
}

template <class S>
Values uncast(const std::vector<S>& values) {
  Values out;
  for (S v : values) {
    if constexpr (kDual<S>)
      out.push_back(v.value);
    else
      out.push_back(Storage<S>::to(v));
  }
  return out;
}

template <class S>
Values tangents(const std::vector<S>& values) {
  Values out;
  if constexpr (kDual<S>)
    for (S v : values) out.push_back(v.tangent);
  return out;
}

struct Results {
  Outputs outputs;
  Values gradients[kTensors];
  cpu::Choice choice = {};
};

// The tangent tells how results change along the direction.
struct DualResults {
  Results value, tangent;
};

// They are the gradients that y, h_n and c_n are given.
Outputs cotangents(const Problem& p) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  Outputs d{Values(p.T * p.N * p.R), Values(p.N * p.R), Values(p.N * p.H)};
  for (Values* values : {&d.y, &d.h_n, &d.c_n})
    for (double& v : *values) v = std::round(normal(random) * 16) / 16;
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t n = 0; n < p.N; ++n)
      if (t >= p.lengths[n]) std::fill_n(&d.y[(t * p.N + n) * p.R], p.R, 0.0);
  if (p.cell != "lstm") std::fill(d.c_n.begin(), d.c_n.end(), 0.0);
  return d;
}

template <class S>
DualResults run_dual(const cpu::InstructionSet& set, const Problem& p, bool recompute, const cpu::Team& team) {
  using A = Accumulate<S>;
  const bool has_c = p.cell == "lstm";
  const int64_t saved = p.cell == "lstm" || p.cell == "gru" ? 4 : 0;
  std::vector<S> given[kTensors], gradients[kTensors];
  const auto values = tensors(p);
  for (int i = 0; i < kTensors; ++i) {
    given[i] = cast_along<S>(*values[i]);
    gradients[i] = std::vector<S>(given[i].size());
  }
  std::vector<S> y(p.T * p.N * p.R), gates(p.T * p.N * saved * p.H), h_n(p.N * p.R), c_n(p.N * p.H);
  std::vector<A> cells(p.T * p.N * p.H);
  std::vector<int64_t> order(p.N), active(p.T);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return p.lengths[a] > p.lengths[b]; });
  for (int64_t t = 0; t < p.T; ++t)
    active[t] = std::count_if(p.lengths.begin(), p.lengths.end(), [&](int64_t length) { return length > t; });

  const auto sequence = [&]<class V>(V* data, int64_t columns) {
    return Sequence<V>{data, nullptr, nullptr, p.N * columns, columns, 1};
  };
  const auto matrix = []<class V>(V* data, int64_t columns) { return Matrix<V>{data, columns, 1}; };
  const auto weights = [&]<class V>(std::type_identity<V>, std::vector<S>* of) {
    return Weights<V>{.ih = {of[3].data(), p.I, 1},
                      .hh = {of[4].data(), p.R, 1},
                      .bias_ih = {of[5].data(), 1},
                      .bias_hh = {of[6].data(), 1},
                      .hr = {p.projected() ? of[7].data() : nullptr, p.H, 1},
                      .vectors = {}};
  };
  cpu::ScanParams<S> params;
  params.input_size = p.I;
  params.hidden_size = p.H;
  params.output_size = p.R;
  params.schedule = {{p.T, p.N, p.reverse, {}}, order.data(), active.data()};
  if (!p.reset.empty()) params.schedule.reset = {p.reset.data(), p.N, 1};
  params.weights = weights(std::type_identity<const S>{}, given);
  params.x = sequence(static_cast<const S*>(given[0].data()), p.I);
  params.h_0 = matrix(static_cast<const S*>(given[1].data()), p.R);
  if (has_c) params.c_0 = matrix(static_cast<const S*>(given[2].data()), p.H);
  params.y = sequence(y.data(), p.R);
  if (saved && !recompute) params.gates = sequence(gates.data(), saved * p.H);
  if (has_c) params.cells = sequence(cells.data(), p.H);
  params.h_n = matrix(h_n.data(), p.R);
  if (has_c) params.c_n = matrix(c_n.data(), p.H);
  set.kernels<S>().forward(p.cell, params, team);

  const Outputs given_d = cotangents(p);
  const std::vector<S> dy = cast<S>(given_d.y), dh_n = cast<S>(given_d.h_n), dc_n = cast<S>(given_d.c_n);
  ScanGradients<S> d;
  d.y = sequence(dy.data(), p.R);
  d.h_n = matrix(dh_n.data(), p.R);
  if (has_c) d.c_n = matrix(dc_n.data(), p.H);
  d.x = sequence(gradients[0].data(), p.I);
  d.h_0 = matrix(gradients[1].data(), p.R);
  if (has_c) d.c_0 = matrix(gradients[2].data(), p.H);
  d.weights = weights(std::type_identity<S>{}, gradients);
  set.kernels<S>().backward(p.cell, params, d, team);

  DualResults out{{{uncast(y), uncast(h_n), uncast(c_n)}, {}}, {{tangents(y), tangents(h_n), tangents(c_n)}, {}}};
  if (!has_c) out.value.outputs.c_n = p.c_0;
  out.value.choice = set.kernels<S>().choice(p.cell, params, team);
  for (int i = 0; i < kTensors; ++i) {
    out.value.gradients[i] = uncast(gradients[i]);
    out.tangent.gradients[i] = tangents(gradients[i]);
  }
  return out;
}

template <class S>
Results run(const cpu::InstructionSet& set, const Problem& p, bool recompute, const cpu::Team& team) {
  return run_dual<S>(set, p, recompute, team).value;
}

double largest_error(const Values& a, const Values& b) {
  double error = 0, scale = 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error = std::max(error, std::isnan(a[i]) ? INFINITY : std::abs(a[i] - b[i]));
    scale = std::max(scale, std::abs(b[i]));
  }
  return error / scale;
}

bool same(const Results& a, const Results& b) {
  bool equal = a.outputs.y == b.outputs.y && a.outputs.h_n == b.outputs.h_n && a.outputs.c_n == b.outputs.c_n;
  for (int i = 0; i < kTensors; ++i) equal = equal && a.gradients[i] == b.gradients[i];
  return equal;
}

double dot(const Values& a, const Values& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

// Central differences of the oracle give the slope of <cotangents, outputs> along a direction of one tensor.
double slope(const Problem& p, int tensor, const Values& direction) {
  constexpr double kStep = 1e-5;
  const Outputs d = cotangents(p);
  const auto at = [&](double step) {
    Problem moved = p;
    Values& values = *tensors(moved)[tensor];
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += step * direction[i];
    const Outputs out = oracle(moved);
    return dot(d.y, out.y) + dot(d.h_n, out.h_n) + dot(d.c_n, out.c_n);
  };
  return (at(kStep) - at(-kStep)) / (2 * kStep);
}

void check_gradients(const std::string& name, const Problem& p, const Results& results) {
  std::mt19937 random(13);
  std::normal_distribution<double> normal;
  const auto values = tensors(p);
  for (int i = 0; i < kTensors; ++i) {
    if (values[i]->empty() || (i == 2 && p.cell != "lstm")) continue;
    Values direction(values[i]->size());
    for (double& v : direction) v = normal(random);
    const double expected = slope(p, i, direction);
    const double size = std::sqrt(dot(direction, direction) * dot(results.gradients[i], results.gradients[i])) + 1;
    const double actual = dot(results.gradients[i], direction);
    check(std::abs(actual - expected) < 1e-7 * size, name + ": slope along " + kTensorNames[i] + " " +
                                                         std::to_string(actual) + ", oracle " +
                                                         std::to_string(expected));
  }
}

void compare(const std::string& name, const Results& actual, const Results& expected, double tolerance) {
  const auto close = [&](const char* what, const Values& a, const Values& b) {
    const double error = largest_error(a, b);
    check(error <= tolerance, name + ": " + what + " is off by " + std::to_string(error));
  };
  close("y", actual.outputs.y, expected.outputs.y);
  close("h_n", actual.outputs.h_n, expected.outputs.h_n);
  close("c_n", actual.outputs.c_n, expected.outputs.c_n);
  for (int i = 0; i < kTensors; ++i)
    close((std::string("d ") + kTensorNames[i]).c_str(), actual.gradients[i], expected.gradients[i]);
}

// On dual numbers, values of results and gradients are the double kernels', and their tangents the slopes of those.
void check_duals(const std::string& name, const cpu::InstructionSet& set, const Problem& p, const Results& exact,
                 const cpu::Team& team) {
  constexpr double kStep = 1e-6;
  const auto moved = [&](double step) {
    Problem at = p;
    for (Values* values : tensors(at))
      for (std::size_t i = 0; i < values->size(); ++i) (*values)[i] += step * direction(i);
    return run<double>(set, at, false, team);
  };
  const auto slope = [](Values& after, const Values& before) {
    for (std::size_t i = 0; i < after.size(); ++i) after[i] = (after[i] - before[i]) / (2 * kStep);
  };
  Results slopes = moved(kStep);
  const Results before = moved(-kStep);
  slope(slopes.outputs.y, before.outputs.y);
  slope(slopes.outputs.h_n, before.outputs.h_n);
  slope(slopes.outputs.c_n, before.outputs.c_n);
  for (int i = 0; i < kTensors; ++i) slope(slopes.gradients[i], before.gradients[i]);

  DualResults dual = run_dual<Dual<double>>(set, p, false, team);
  compare(name + " dual", dual.value, exact, 1e-12);
  if (p.cell != "lstm") dual.tangent.outputs.c_n = slopes.outputs.c_n;  // no other cell has a c_n
  compare(name + " tangent", dual.tangent, slopes, 1e-6);
  DualResults single = run_dual<Dual<float>>(set, p, true, {3, fork_threads});
  if (p.cell != "lstm") single.tangent.outputs.c_n = slopes.outputs.c_n;
  compare(name + " dual float", single.value, exact, 2e-5);
  compare(name + " tangent float", single.tangent, dual.tangent, 1e-4);
}

// These runtimes do not bring the threads asked for.
void fork_on_one_thread(int64_t parts, const std::function<void(int64_t, int64_t)>& body) { body(0, parts); }

void fork_in_turn(int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
  for (int64_t i = 0; i < parts; ++i) body(i, i + 1);
}

void fork_too_few(int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
  std::thread other([&] { body(1, parts); });
  body(0, 1);
  other.join();
}

// A build under a sanitizer leaves duals out.
bool has_duals(const cpu::InstructionSet& set) {
  return set.provides<Dual<double>>() || (set.rest && set.rest->provides<Dual<double>>());
}
// Products of bfloat16 are near, whether gates are saved or not, and their bits do not depend on threads.
template <class S>
void check_rounded(const std::string& name, const cpu::InstructionSet& set, const Problem& p, const Results& exact) {
  const Results results = run<S>(set, p, false, {1, fork_on_one_thread});
  compare(name, results, exact, 6e-2);
  compare(name + " recompute", run<S>(set, p, true, {1, fork_on_one_thread}), exact, 6e-2);
  check(same(run<S>(set, p, false, {3, fork_threads}), results), name + ": 3 threads change bits");
}

void check_case(const std::string& cell, Sizes size, bool ragged, bool reset, bool reverse) {
  const Problem p = make_problem(cell, size, ragged, reset, reverse);
  const Outputs expected = oracle(p);
  static const auto sets = instruction_sets();
  for (const auto* set : sets) {
    const std::string name = std::string(set->name) + " " + cell + " T" + std::to_string(size.T) + " N" +
                             std::to_string(size.N) + " I" + std::to_string(size.I) + " H" + std::to_string(size.H) +
                             " R" + std::to_string(size.R) + (ragged ? " ragged" : "") + (reset ? " reset" : "") +
                             (reverse ? " reverse" : "");
    const cpu::Team alone(1, fork_on_one_thread);
    const Results exact = run<double>(*set, p, false, alone);
    check(largest_error(exact.outputs.y, expected.y) < 1e-12, name + ": y");
    check(largest_error(exact.outputs.h_n, expected.h_n) < 1e-12, name + ": h_n");
    if (cell == "lstm") check(largest_error(exact.outputs.c_n, expected.c_n) < 1e-12, name + ": c_n");
    check_gradients(name, p, exact);
    if (has_duals(*set)) check_duals(name, *set, p, exact, alone);

    const Results single = run<float>(*set, p, false, alone);
    compare(name + " float", single, exact, 2e-5);
    check_rounded<BFloat16>(name + " bfloat16", *set, p, exact);
    if (set->provides<RoundedFloat>()) check_rounded<RoundedFloat>(name + " rounded", *set, p, exact);
    compare(name + " half", run<Half>(*set, p, false, alone), exact, 8e-3);
    compare(name + " recompute", run<float>(*set, p, true, alone), exact, 2e-5);

    for (const int64_t threads : {2, 3, 8})
      check(same(run<float>(*set, p, false, {threads, fork_threads}), single),
            name + ": " + std::to_string(threads) + " threads change bits");
    for (const auto fork : {fork_on_one_thread, fork_too_few})
      check(same(run<float>(*set, p, false, {3, fork}), single), name + ": a runtime with fewer threads changes bits");
  }
}

// Returns the problem that has sample n alone.
Problem sample_of(const Problem& p, int64_t n) {
  Problem alone = p;
  alone.N = 1;
  alone.lengths = {p.lengths[n]};
  const auto take = [&](const Values& from, int64_t steps, int64_t columns, Values& out) {
    out.clear();
    for (int64_t t = 0; t < steps; ++t)
      out.insert(out.end(), &from[(t * p.N + n) * columns], &from[(t * p.N + n + 1) * columns]);
  };
  take(p.x, p.T, p.I, alone.x);
  take(p.h_0, 1, p.R, alone.h_0);
  take(p.c_0, 1, p.H, alone.c_0);
  return alone;
}

// A sample's bits do not depend on the batch around it: tiles of any number of rows, one block in matrix registers or
// two, sum in one order.
template <class S>
void check_company(const cpu::InstructionSet& set) {
  const cpu::Team team(1, fork_on_one_thread);
  for (const int64_t N : {2, 3, 5, 7, 13, 15, 16, 17, 31, 32, 33, 48, 50}) {
    const Problem p = make_problem("lstm", {3, N, 270, 83, 83}, false, false, false);
    const Values batch = run<S>(set, p, false, team).outputs.h_n;
    for (const int64_t n : {int64_t{0}, N / 2, N - 1}) {
      const Values alone = run<S>(set, sample_of(p, n), false, team).outputs.h_n;
      check(std::equal(alone.begin(), alone.end(), &batch[n * p.R]), std::string(set.name) + ": sample " +
                                                                         std::to_string(n) + " of " +
                                                                         std::to_string(N) + " has bits of its own");
    }
  }
}

// Many more threads than a machine for tests has cores. They share rows, units, or both, as the plan says of 64.
void check_many_threads() {
  struct Shape {
    Sizes size;
    const char* shared;
  };
  const auto& set = *instruction_sets()[0];
  for (const Shape& shape :
       {Shape{{4, 64, 8, 64, 64}, "rows"}, Shape{{3, 1, 8, 256, 256}, "units"}, Shape{{3, 16, 8, 256, 256}, "both"},
        Shape{{20, 32, 8, 200, 200}, "chunks of several sums"}}) {
    const Problem p = make_problem("lstm", shape.size, shape.size.N > 1, false, false);
    const Results expected = run<float>(set, p, false, {1, fork_threads});
    for (const int64_t threads : {3, 16, 64})
      check(same(run<float>(set, p, false, {threads, fork_threads}), expected),
            std::to_string(threads) + " threads that share " + shape.shared + " change bits");
  }
}

// Large teams share units by narrower panels than small ones, as the plan says of AVX-512. Bits stay the same.
template <class S>
void check_narrow_panels(const cpu::InstructionSet& set, const std::string& cell, Sizes size, int64_t threads,
                         int64_t forward_vecs, int64_t backward_vecs) {
  const Problem p = make_problem(cell, size, size.N > 1, false, false);
  const Results whole = run<S>(set, p, false, {1, fork_threads});
  const Results shared = run<S>(set, p, false, {threads, fork_threads});
  const std::string name = std::string(set.name) + " " + cell + " N" + std::to_string(size.N) + " H" +
                           std::to_string(size.H) + ", " + std::to_string(threads) + " threads: ";
  check(same(shared, whole), name + "other bits");
  check(shared.choice.forward_unit_vecs == forward_vecs && shared.choice.backward_unit_vecs == backward_vecs,
        name + "panels of " + std::to_string(shared.choice.forward_unit_vecs) + " and " +
            std::to_string(shared.choice.backward_unit_vecs) + " vectors");
}

void check_narrow_panels() {
  for (const auto* set : instruction_sets()) {
    if (!set->name.starts_with("avx512") && set->name != "amx") continue;  // panels of shorter vectors stay whole
    if (set->provides<BFloat16>()) check_narrow_panels<BFloat16>(*set, "lstm", {3, 1, 8, 512, 512}, 16, 1, 2);
    if (!set->provides<float>()) continue;  // it takes another set's
    for (const int64_t threads : {1, 3, 8, 16}) {
      const int64_t backward = threads < 8 ? 4 : 2;
      check_narrow_panels<float>(*set, "rnn_tanh", {3, 1, 8, 256, 256}, threads, 4, 4);
      check_narrow_panels<float>(*set, "gru", {3, 1, 8, 256, 256}, threads, 1, backward);
      check_narrow_panels<float>(*set, "lstm", {3, 1, 8, 256, 256}, threads, 1, backward);
    }
    check_narrow_panels<float>(*set, "lstm", {3, 8, 8, 250, 250}, 16, 1, 2);
    check_narrow_panels<float>(*set, "rnn_relu", {2, 1, 8, 1280, 1280}, 64, 2, 2);
  }
}

}  // namespace
}  // namespace fastrnn::test

int main() {
  using namespace fastrnn::test;
  for (const std::string cell : {"rnn_tanh", "rnn_relu", "gru", "lstm"}) {
    check_case(cell, {7, 5, 3, 9, 9}, false, false, false);
    check_case(cell, {7, 5, 3, 9, 9}, true, true, true);
    check_case(cell, {5, 3, 19, 83, 83}, true, true, false);
    check_case(cell, {6, 33, 2, 3, 3}, true, true, false);  // samples lie in the lanes
    check_case(cell, {6, 33, 2, 3, 3}, false, false, true);
    check_case(cell, {2, 2, 140, 40, 40}, false, true, true);  // products are deeper than one slice
    check_case(cell, {9, 1, 1, 1, 1}, false, false, false);
    check_case(cell, {70, 2, 3, 9, 9}, true, true, true);  // two chunks, whose input products are made ahead
  }
  check_case("lstm", {5, 3, 4, 20, 7}, true, true, true);        // R < H is a projection
  check_case("lstm", {8, 72, 270, 40, 40}, true, false, false);  // several blocks and slices of matrix registers
  check_many_threads();
  check_narrow_panels();
  for (const auto* set : instruction_sets()) {
    check_company<float>(*set);
    check_company<fastrnn::BFloat16>(*set);
    if (set->provides<fastrnn::RoundedFloat>()) check_company<fastrnn::RoundedFloat>(*set);
  }
  {
    const Problem p = make_problem("lstm", {7, 9, 3, 40, 40}, true, false, false);
    const auto sets = instruction_sets();
    const Results expected = run<float>(*sets[0], p, false, {1, fork_threads});
    check(same(run<float>(*sets[0], p, false, {3, fork_in_turn}), expected), "parts in turn change bits");
    std::vector<Results> at_once(4);
    fork_threads(4,
                 [&](int64_t begin, int64_t) { at_once[begin] = run<float>(*sets[0], p, false, {2, fork_threads}); });
    for (const Results& each : at_once) check(same(each, expected), "calls at once change bits");
  }
  return finish();
}
