// How fast this machine multiplies and adds: the same for every benchmark, whatever it computes.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace {
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

double now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

template <class A>
struct Registers {
  typedef A Vec __attribute__((vector_size(kBytes)));
};

// Enough independent chains to hide the latency of four cycles on two or four pipes.
template <class A>
void multiply_add(int64_t rounds) {
  using Vec = typename Registers<A>::Vec;
  constexpr int kChains = 12;
  Vec sums[kChains] = {};
  Vec factor = Vec{} + A(0.999), term = Vec{} + A(0.001);
  for (int64_t i = 0; i < rounds; ++i) {
    for (int j = 0; j < kChains; ++j) sums[j] = sums[j] * factor + term;
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j)
#if defined(__x86_64__)
      asm volatile("" : "+x"(sums[j]));
#else
      asm volatile("" : "+w"(sums[j]));
#endif
  }
}

// A fresh thread starts where its maker runs, and the scheduler takes its time to move it.
void pin_to(int index) {
  cpu_set_t allowed, chosen;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  CPU_ZERO(&chosen);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && seen++ == index) CPU_SET(cpu, &chosen);
  if (CPU_COUNT(&chosen) == 1) sched_setaffinity(0, sizeof chosen, &chosen);
}

// Seconds that all threads together take for `rounds` each. They run as many before: the threads of the pool that
// computed last may spin for some milliseconds more, and a core raises its clock.
template <class A>
double seconds(int threads, int64_t rounds) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  const auto work = [&](int index) {
    pin_to(index);
    multiply_add<A>(rounds);
    ++ready;
    while (!go) {
    }
    multiply_add<A>(rounds);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
  double start = 0;
  std::thread first([&] {
    pin_to(0);
    multiply_add<A>(rounds);
    while (ready < threads - 1) {
    }
    start = now();
    go = true;
    multiply_add<A>(rounds);
  });
  first.join();
  for (std::thread& other : others) other.join();
  return now() - start;
}
}  // namespace

extern "C" {

int vector_bytes() { return kBytes; }

// FLOP in a second of `threads` threads.
double flop_rate(int threads, int element_bytes, int64_t rounds) {
  const double lanes = kBytes / element_bytes;
  const double time = element_bytes == 4 ? seconds<float>(threads, rounds) : seconds<double>(threads, rounds);
  return 2 * 12 * lanes * rounds * threads / time;
}

// Vectors of floats multiplied and added a cycle on one core. A cycle is a third of a multiplication in a chain of
// integers, as on all of today's large cores. Both loops take turns of some 100 us: a core lowers its clock for wide
// vectors, and raises it again much later.
double vectors_per_cycle(double* clock) {
  constexpr int kTurns = 101;
  std::vector<double> ratios, clocks;
  for (int turn = 0; turn < kTurns; ++turn) {
    constexpr int64_t kRounds = 20'000;
    uint64_t value = 3;
    const double start = now();
    for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        value *= value;
        asm volatile("" : "+r"(value));
      }
    }
    const double middle = now();
    multiply_add<float>(kRounds);
    const double end = now();
    const double cycle = (middle - start) / (kRounds * 8 * 3);
    clocks.push_back(1 / cycle);
    ratios.push_back(kRounds * 12 / ((end - middle) / cycle));
  }
  std::nth_element(clocks.begin(), clocks.begin() + kTurns / 2, clocks.end());
  std::nth_element(ratios.begin(), ratios.begin() + kTurns / 2, ratios.end());
  *clock = clocks[kTurns / 2];
  return ratios[kTurns / 2];
}
}
