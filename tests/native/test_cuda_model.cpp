// The rules of the time model: what follows each other is added, and nothing makes a step faster.
#include <cmath>

#include "check.h"
#include "cuda/plan.h"

int main() {
  using namespace fastrnn::cuda;
  using fastrnn::test::check;
  const auto close = [](double a, double b) { return std::abs(a - b) < 1e-9; };
  const double cycle = 1 / (kH100.clock_ghz * 1e3);
  const auto us = [](const StepWork& work, Precision precision = Precision::kHalf) {
    return step_us(work, precision, kH100);
  };
  StepWork idle;
  idle.warps = 8;
  const double base = us(idle);
  check(close(base, kH100.cell_cycles * cycle), "an empty step is its cell's chain");

  // Each part alone adds its own time, and all of them together the sum of them.
  struct Part {
    const char* name;
    double StepWork::* field;
    double amount, more_us;
  };
  const Part parts[] = {
      {"slots", &StepWork::slots, 400, 100 * cycle},
      {"multiply-adds", &StepWork::fma, 1024 * 50, 50 * cycle},
      {"shared memory", &StepWork::shared_bytes, 128 * 70, 70 * cycle},
      {"barriers", &StepWork::barriers, 2, 2 * kH100.barrier_cycles * cycle},
      {"exchange", &StepWork::exchanged_bytes, 5.5e5, kH100.poll_cycles * cycle + 0.1},
  };
  StepWork all = idle;
  double sum = base;
  for (const Part& part : parts) {
    StepWork work = idle;
    work.*part.field = all.*part.field = part.amount;
    sum += part.more_us;
    check(close(us(work), base + part.more_us), std::string(part.name) + " alone: " + std::to_string(us(work)));
  }
  check(close(us(all), sum), "all parts together are their sum");

  // Throughput and latency of the same matrix instructions are not added.
  StepWork chain = all;
  chain.dependent = 1;
  check(close(us(chain), sum), "a short chain hides behind the products' throughput");
  chain.dependent = 4;
  check(close(us(chain), sum + (4 * kH100.mma_cycles - 50) * cycle), "a long chain takes their place");

  // Polls that come too early cost nothing until they take longer than the wait.
  StepWork crowded = idle;
  crowded.exchanged_bytes = 5.5e6;
  check(close(polls(kH100), 2) && close(us(crowded), base + 2.0), "polls that saturate the L2 stretch the wait");

  StepWork few = all;
  few.warps = 2;
  check(close(us(few), sum + 100 * cycle), "two warps keep two of four schedulers busy");
  StepWork twice = all;
  twice.waves = 2;
  check(us(twice) > 1.5 * us(all) - kH100.poll_cycles * cycle, "blocks that the device cannot hold wait");
  StepWork streamed = all;
  streamed.streamed_bytes = 3e7;
  check(close(us(streamed), 10), "no step is faster than what it streams");
  check(us(all, Precision::kTf32) > us(all) && us(all, Precision::kFloat) > us(all, Precision::kTf32),
        "products take longer in wider types");

  // Every resident kernel that a plan can choose has been counted.
  constexpr DeviceLimits kLimits{90, 132, 227 << 10, true};
  for (const auto precision : {Precision::kHalf, Precision::kBFloat16, Precision::kTf32, Precision::kFloat})
    for (const auto direction : {Direction::kForward, Direction::kBackward})
      for (const int gates : {1, 3, 4})
        for (const int64_t H : {16, 64, 256}) {
          const Plan chosen = plan({.gates = gates, .T = 10, .N = 16, .H = H}, precision, direction, kLimits);
          check(chosen.regime == Regime::kStepwise || chosen.work.slots > 100, "a step without instructions");
        }
  for (const int capability : {80, 86, 89, 90, 100, 120})
    check(machine_of(capability).clock_ghz > 1, "a machine without a clock");
  return fastrnn::test::finish();
}
