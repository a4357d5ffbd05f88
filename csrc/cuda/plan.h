// Plan: which regime runs a scan, and how it is cut into blocks. Choosing is not launching: a pure function of sizes and
// limits, so that a table of tests covers every GPU without one.
//
// Time is a model (its constants: Machine). What a resident kernel can hold is not: a warp keeps kFragments fragments of
// 16 gate rows each in registers for the whole sequence, and the kernels are compiled for exactly that many.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace fastrnn::cuda {

// What a product multiplies, and with which instructions.
enum class Precision { kHalf, kBFloat16, kTf32, kFloat, kDouble };

enum class Regime { kBlockResident, kGridResident, kStepwise };
enum class Direction { kForward, kBackward };

constexpr std::string_view name(Regime regime) {
  constexpr std::string_view names[] = {"block-resident", "grid-resident", "stepwise"};
  return names[static_cast<int>(regime)];
}

// A device, as the runtime describes it.
struct DeviceLimits {
  int compute_capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // with opt-in
  bool cooperative = false;
};

// What the step time is modelled by. One entry a generation, none of it measured by us.
struct Machine {
  double clock_ghz, l2_tb_s, hbm_tb_s;
  double half_fma, tf32_fma, float_fma;  // a clock and multiprocessor
  double poll_cycles, barrier_cycles, mma_cycles, launch_us;
};

constexpr Machine machine_of(const DeviceLimits& limits) {
  const int capability = limits.compute_capability;
  if (capability >= 90 && capability < 120) return {1.75, 5.5, 3.0, 1024, 512, 128, 900, 30, 33, 2.5};
  if (capability == 80) return {1.41, 3.5, 1.6, 1024, 512, 64, 900, 30, 33, 2.5};
  return {2.5, 5.0, 1.0, 512, 128, 128, 900, 30, 33, 2.5};
}

struct Sizes {
  int gates = 0;  // G
  int64_t T = 0, N = 0, H = 0;
  bool projected = false;
};

struct Plan {
  Regime regime = Regime::kStepwise;
  Direction direction = Direction::kForward;
  int unit_blocks = 1;    // blocks that share the units of one group of columns
  int column_blocks = 1;  // groups of columns, each with the weights of its own
  int units = 0;          // of a block
  int columns = 0;        // of a block: samples, a multiple of 8
  int threads = 0;
  int64_t shared_bytes = 0;
  int64_t exchange_bytes = 0;  // a step, in the exchange buffer
  int64_t steps = 0;           // that one launch walks
  double step_us = 0;          // modelled
  std::string refused;         // "regime: reason" of each faster one, a line each

  int blocks() const { return unit_blocks * column_blocks; }
};

}  // namespace fastrnn::cuda
