// A model of a step's time. Parts of a step that follow each other add up; none hides behind the longest one.
//
// The model leans to the slow side. What a step does is counted in the compiled kernels (StepWork); what it costs is a
// constant of the GPU (Machine). A change of a kernel may change the counts; a change of the rules below, or of a
// constant, needs a measurement on a GPU.
#pragma once

#include <algorithm>
#include <cstdint>
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

// What a GPU does in a clock or a second. tools/gpu/calibrate.cu measures one and prints it in this form.
struct Machine {
  std::string_view name;
  double clock_ghz;
  double l2_tb_s, hbm_tb_s;              // bandwidths, of the whole device
  double half_fma, tf32_fma, float_fma;  // multiply-adds a clock and multiprocessor, float32 sums
  double poll_cycles;                    // from a word's store until another multiprocessor's poll has seen it
  double l2_cycles;                      // a load's trip to L2 and back
  double barrier_cycles;                 // __syncthreads() of a block of 8 warps
  double mma_cycles;                     // a matrix instruction until one that adds to its result may begin
  double cell_cycles;                    // the chain of one cell: exponential and reciprocal of a gate, then of tanh(c)
  double issue_slots;                    // warp instructions a clock and multiprocessor: one a scheduler
  double shared_bytes;                   // of shared memory a clock and multiprocessor
  double launch_us;                      // a kernel after another one on a stream
  bool measured;                         // by calibrate.cu; else published or assumed
};

// 132 multiprocessors. NVIDIA's H100 whitepaper: 989 TFLOP/s dense fp16 at 1.83 GHz are 2048 multiply-adds a clock by
// wgmma; mma.sync is assumed to reach half of them, TF32 half of that; 128 float32 lanes, 3.35 TB/s of HBM3, of which
// copies reach 3.0. Clock under load, L2 and latencies: assumed.
inline constexpr Machine kH100{.name = "H100",
                               .clock_ghz = 1.75,
                               .l2_tb_s = 5.5,
                               .hbm_tb_s = 3.0,
                               .half_fma = 1024,
                               .tf32_fma = 512,
                               .float_fma = 128,
                               .poll_cycles = 900,
                               .l2_cycles = 600,
                               .barrier_cycles = 30,
                               .mma_cycles = 33,
                               .cell_cycles = 100,
                               .issue_slots = 4,
                               .shared_bytes = 128,
                               .launch_us = 2.5,
                               .measured = false};

// 108 multiprocessors. NVIDIA's A100 whitepaper: 312 TFLOP/s dense fp16 and 156 TF32 at 1.41 GHz are 1024 and 512
// multiply-adds a clock, 19.5 float32 are 64; 1.6 TB/s of HBM2. L2 and latencies: assumed.
inline constexpr Machine kA100{.name = "A100",
                               .clock_ghz = 1.41,
                               .l2_tb_s = 3.5,
                               .hbm_tb_s = 1.6,
                               .half_fma = 1024,
                               .tf32_fma = 512,
                               .float_fma = 64,
                               .poll_cycles = 900,
                               .l2_cycles = 600,
                               .barrier_cycles = 30,
                               .mma_cycles = 33,
                               .cell_cycles = 100,
                               .issue_slots = 4,
                               .shared_bytes = 128,
                               .launch_us = 2.5,
                               .measured = false};

// 128 multiprocessors. NVIDIA's Ada whitepaper: 165 TFLOP/s dense fp16 with float32 sums and 82.6 TF32 at 2.52 GHz are
// 256 and 128 multiply-adds a clock, 82.6 float32 are 128; 1.0 TB/s of GDDR6X. L2 and latencies: assumed.
inline constexpr Machine kRtx4090{.name = "RTX 4090",
                                  .clock_ghz = 2.5,
                                  .l2_tb_s = 5.0,
                                  .hbm_tb_s = 1.0,
                                  .half_fma = 256,
                                  .tf32_fma = 128,
                                  .float_fma = 128,
                                  .poll_cycles = 900,
                                  .l2_cycles = 600,
                                  .barrier_cycles = 30,
                                  .mma_cycles = 33,
                                  .cell_cycles = 100,
                                  .issue_slots = 4,
                                  .shared_bytes = 128,
                                  .launch_us = 2.5,
                                  .measured = false};

// The machine that stands for a compute capability, 10 * major + minor: its own generation's, or the nearest one.
constexpr const Machine& machine_of(int compute_capability) {
  if (compute_capability >= 90 && compute_capability < 120) return kH100;
  return compute_capability == 80 ? kA100 : kRtx4090;
}

constexpr double fma_a_clock(Precision precision, const Machine& machine) {
  if (precision == Precision::kFloat) return machine.float_fma;
  if (precision == Precision::kDouble) return machine.float_fma / 2;  // on data-center GPUs; others have less
  return precision == Precision::kTf32 ? machine.tf32_fma : machine.half_fma;
}

// What a step of a resident kernel does.
struct StepWork {
  double warps = 0;            // of a block
  double column_tiles = 0;     // of a block, whose partial products meet in shared memory; 0: they do not
  double pairs = 0;            // of k-steps that the warps of a block multiply, each with all of its row tiles
  double slots = 0;            // warp instructions of a block, without those of polls that came too early
  double fma = 0;              // multiply-adds of a block
  double dependent = 0;        // matrix instructions of a warp that wait for each other
  double shared_bytes = 0;     // of a block, through shared memory
  double barriers = 0;         // of a block
  double exchanged_bytes = 0;  // of all blocks: words of others, each read once
  double streamed_bytes = 0;   // of all blocks: input products, outputs and what is saved
  double waves = 1;            // of blocks that follow each other, as the device holds no more at once
};

// How often a block polls in a step: a poll takes l2_cycles, and the last one finds the words.
constexpr double polls(const Machine& machine) {
  return static_cast<double>((static_cast<int64_t>(machine.poll_cycles) + static_cast<int64_t>(machine.l2_cycles) - 1) /
                             static_cast<int64_t>(machine.l2_cycles));
}

// Microseconds of a step of a resident kernel.
constexpr double step_us(const StepWork& work, Precision precision, const Machine& machine) {
  const auto us = [&](double cycles) { return cycles / (machine.clock_ghz * 1e3); };
  // A scheduler issues only for its own warps; a block with fewer warps than schedulers leaves some idle.
  const double issue = work.slots / std::min(machine.issue_slots, std::max(1.0, work.warps));
  // Products are limited by throughput or by latency, whichever is longer.
  const double products = std::max(work.fma / fma_a_clock(precision, machine), work.dependent * machine.mma_cycles);
  const double block = us(issue + products + work.shared_bytes / machine.shared_bytes +
                          work.barriers * machine.barrier_cycles + machine.cell_cycles);
  double exchange = 0;
  if (work.exchanged_bytes > 0) {
    // Polls that come too early overlap the wait, or stretch it if they take longer; the last one follows it.
    const double once = work.exchanged_bytes / (machine.l2_tb_s * 1e6);
    exchange = std::max(us(machine.poll_cycles), (polls(machine) - 1) * once) + once;
  }
  // Nothing waits for what is streamed, but no step is faster than the memory.
  return std::max(work.waves * block + exchange, work.streamed_bytes / (machine.hbm_tb_s * 1e6));
}

// What a step of the stepwise regime does: it launches a product and a kernel over all cells.
struct LaunchWork {
  double launches = 0;
  double fma = 0;
  double bytes = 0;  // of weights, products and states
};

// Microseconds of such a step, whose launches wait for each other.
constexpr double step_us(const LaunchWork& work, Precision precision, const Machine& machine, int multiprocessors) {
  const double products = work.fma / (fma_a_clock(precision, machine) * std::max(1, multiprocessors));
  return work.launches * machine.launch_us + products / (machine.clock_ghz * 1e3) +
         work.bytes / (machine.hbm_tb_s * 1e6);
}

}  // namespace fastrnn::cuda
