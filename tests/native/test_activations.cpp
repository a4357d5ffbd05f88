// tanh and sigmoid of every float, through the kernels: at most 2 ulp from the true value.
//
// A GRU of one unit without recurrence saves its gates: r = sigmoid(x) and n = tanh(x).
// With an argument k, only every k-th float is tried (emulators are slow).
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <mutex>

#include "check.h"
#include "errors.h"

namespace {
using namespace fastrnn;
using Worst = test::Worst<float>;

constexpr double kMostUlp = 2;
constexpr int64_t kBlock = 1 << 16;
constexpr int64_t kSaved = 4;  // values that a GRU saves: r, z, n and the product with h

struct Function {
  const char* name;
  double (*exact)(double);
  int64_t saved_at;
};

constexpr std::array kFunctions{
    Function{"sigmoid", [](double x) { return 1 / (1 + std::exp(-x)); }, 0},
    Function{"tanh", [](double x) { return std::tanh(x); }, 2},
};

// Fills saved[kBlock][kSaved].
void run_gru(const cpu::InstructionSet& set, const cpu::Team& team, const float* x, float* saved) {
  const float w_ih[] = {1, 0, 1}, w_hh[] = {0, 0, 0};
  std::vector<float> output(kBlock);
  cpu::ScanParams<float> params;
  params.input_size = params.hidden_size = params.output_size = 1;
  params.schedule.T = 1;
  params.schedule.N = kBlock;
  params.weights.ih = {w_ih, 1, 1};
  params.weights.hh = {w_hh, 1, 1};
  params.x = {x, nullptr, nullptr, kBlock, 1, 1};
  params.y = {output.data(), nullptr, nullptr, kBlock, 1, 1};
  params.gates = {saved, nullptr, nullptr, kSaved * kBlock, kSaved, 1};
  set.kernels<float>().forward("gru", params, team);
}

Worst worst_of_block(const float* x, const float* saved, const double* exact) {
  Worst worst;
  for (int64_t i = 0; i < kBlock; ++i) worst.merge({test::ulps_off(saved[i * kSaved], exact[i]), x[i]});
  return worst;
}

void check_floats(int64_t stride) {
  auto sets = test::instruction_sets();
  std::erase_if(sets, [](const cpu::InstructionSet* set) { return !set->provides<float>(); });  // has none of its own
  std::vector<std::array<Worst, kFunctions.size()>> worst(sets.size());
  std::mutex lock;
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  const int64_t count = ((int64_t{1} << 32) + stride - 1) / stride;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  test::fork_threads(threads, [&](int64_t begin, int64_t) {
    const cpu::Team alone(1, test::fork_threads);
    std::vector<float> x(kBlock), saved(kSaved * kBlock);
    std::array<std::vector<double>, kFunctions.size()> exact;
    for (int64_t b = begin; b < blocks; b += threads) {
      for (int64_t i = 0; i < kBlock; ++i)
        x[i] = std::bit_cast<float>(static_cast<uint32_t>((b * kBlock + i) * stride));
      for (std::size_t f = 0; f < kFunctions.size(); ++f) {
        exact[f].resize(kBlock);
        std::transform(x.begin(), x.end(), exact[f].begin(), kFunctions[f].exact);
      }
      for (std::size_t s = 0; s < sets.size(); ++s) {
        run_gru(*sets[s], alone, x.data(), saved.data());
        for (std::size_t f = 0; f < kFunctions.size(); ++f) {
          const Worst here = worst_of_block(x.data(), saved.data() + kFunctions[f].saved_at, exact[f].data());
          const std::lock_guard guard(lock);
          worst[s][f].merge(here);
        }
      }
    }
  });
  for (std::size_t s = 0; s < sets.size(); ++s)
    for (std::size_t f = 0; f < kFunctions.size(); ++f) {
      const std::string name = std::string(sets[s]->name) + " " + kFunctions[f].name;
      std::printf("%s: %.3f ulp at most, at %a, of %lld floats\n", name.c_str(), worst[s][f].ulp, worst[s][f].at,
                  static_cast<long long>(count));
      test::check(worst[s][f].ulp <= kMostUlp, name);
    }
}
}  // namespace

int main(int argc, char** argv) {
  check_floats(argc > 1 ? std::atoll(argv[1]) : 1);
  return test::finish();
}
