// tanh and sigmoid of every float, through the kernels: at most 2 ulp from the true value.
//
// A network of one unit with weights 1 and 0 computes tanh(x); an LSTM of one unit saves its input gate, sigmoid(x).
// With an argument k, only every k-th float is tried (emulators are slow).
#include <bit>
#include <cmath>
#include <cstdlib>
#include <mutex>

#include "check.h"

namespace {
using namespace fastrnn;

constexpr double kMostUlp = 2;
constexpr int64_t kBlock = 1 << 16;

// The distance between floats around a value.
double ulp(double value) {
  const int exponent = std::max(std::ilogb(value), -126);  // 0 and subnormal numbers are as far apart as 2^-126
  return std::ldexp(1.0, exponent - 23);
}

void tanh_block(const cpu::InstructionSet& set, const cpu::Team& team, const float* x, float* y) {
  const float weights[] = {1, 0};
  cpu::ScanParams<float> params;
  params.input_size = params.hidden_size = params.output_size = 1;
  params.schedule.T = 1;
  params.schedule.N = kBlock;
  params.weights.ih = {&weights[0], 1, 1};
  params.weights.hh = {&weights[1], 1, 1};
  params.x = {x, nullptr, nullptr, kBlock, 1, 1};
  params.y = {y, nullptr, nullptr, kBlock, 1, 1};
  set.kernels<float>().forward("rnn_tanh", params, team);
}

void sigmoid_block(const cpu::InstructionSet& set, const cpu::Team& team, const float* x, float* y) {
  const float w_ih[] = {1, 0, 0, 0}, w_hh[] = {0, 0, 0, 0};
  std::vector<float> gates(4 * kBlock), output(kBlock);
  cpu::ScanParams<float> params;
  params.input_size = params.hidden_size = params.output_size = 1;
  params.schedule.T = 1;
  params.schedule.N = kBlock;
  params.weights.ih = {w_ih, 1, 1};
  params.weights.hh = {w_hh, 1, 1};
  params.x = {x, nullptr, nullptr, kBlock, 1, 1};
  params.y = {output.data(), nullptr, nullptr, kBlock, 1, 1};
  params.gates = {gates.data(), nullptr, nullptr, 4 * kBlock, 4, 1};
  set.kernels<float>().forward("lstm", params, team);
  for (int64_t i = 0; i < kBlock; ++i) y[i] = gates[4 * i];
}

struct Worst {
  double ulp = 0;
  float at = 0;
};

using Block = void (*)(const cpu::InstructionSet&, const cpu::Team&, const float*, float*);

void check_function(const char* name, Block block, double (*exact)(double), int64_t stride) {
  auto sets = test::instruction_sets();
  std::erase_if(sets, [](const cpu::InstructionSet* set) { return !set->provides<float>(); });  // has none of its own
  std::vector<Worst> worst(sets.size());
  std::vector<int64_t> wrong_nans(sets.size(), 0);
  std::mutex lock;
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  const int64_t count = ((int64_t{1} << 32) + stride - 1) / stride;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  test::fork_threads(threads, [&](int64_t begin, int64_t) {
    const cpu::Team alone(1, test::fork_threads);
    std::vector<float> x(kBlock), y(kBlock);
    std::vector<double> want(kBlock), unit(kBlock);
    for (int64_t b = begin; b < blocks; b += threads) {
      for (int64_t i = 0; i < kBlock; ++i) {
        x[i] = std::bit_cast<float>(static_cast<uint32_t>((b * kBlock + i) * stride));
        want[i] = exact(x[i]);
        unit[i] = ulp(want[i]);
      }
      for (std::size_t s = 0; s < sets.size(); ++s) {
        block(*sets[s], alone, x.data(), y.data());
        Worst here;
        int64_t nans = 0;
        for (int64_t i = 0; i < kBlock; ++i) {
          if (std::isnan(x[i]) || std::isnan(y[i])) {
            nans += std::isnan(x[i]) != std::isnan(y[i]);
            continue;
          }
          const double error = std::abs(y[i] - want[i]) / unit[i];
          if (error > here.ulp) here = {error, x[i]};
        }
        const std::lock_guard guard(lock);
        wrong_nans[s] += nans;
        if (here.ulp > worst[s].ulp) worst[s] = here;
      }
    }
  });
  for (std::size_t s = 0; s < sets.size(); ++s) {
    const std::string set(sets[s]->name);
    std::printf("%s %s: %.3f ulp at most, at %a, of %lld floats\n", set.c_str(), name, worst[s].ulp, worst[s].at,
                static_cast<long long>(count));
    test::check(worst[s].ulp <= kMostUlp, set + " " + name);
    test::check(wrong_nans[s] == 0, set + " " + name + ": NaN where there is none, or none where there is one");
  }
}
}  // namespace

int main(int argc, char** argv) {
  const int64_t stride = argc > 1 ? std::atoll(argv[1]) : 1;
  check_function("tanh", tanh_block, [](double x) { return std::tanh(x); }, stride);
  check_function("sigmoid", sigmoid_block, [](double x) { return 1 / (1 + std::exp(-x)); }, stride);
  return test::finish();
}
