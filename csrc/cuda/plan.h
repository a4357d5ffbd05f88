// Plan: which regime runs a scan, and how it is cut into blocks. Choosing is not launching: a pure function of sizes
// and limits, so that a table of tests covers every GPU without one.
//
// Time is a model (model.h). What a resident kernel can hold is not: a warp keeps the fragments of some pairs of
// k-steps in registers for the whole sequence, and the kernels are compiled for exactly that many (pairs_a_warp).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "cuda/model.h"
#include "cuda/step_counts.h"

namespace fastrnn::cuda {

constexpr int kRegimes = 3;

// A device, as the runtime describes it.
struct DeviceLimits {
  int compute_capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  int64_t shared_bytes_per_block = 0;  // with opt-in
  bool cooperative = false;
  const char* refused_launch = nullptr;  // CUDA's message if it refused a cooperative launch before
};

struct Sizes {
  int gates = 0;  // G
  int64_t T = 0, N = 0, H = 0;
  bool projected = false;
  int saved = 0;  // values that a unit and step saves for backward, beside h and c
  bool has_cell_state = false;
};

// --- the kernels' geometry --------------------------------------------------------------------------

constexpr int kLanes = 32;
constexpr int kWarps = 8;  // of a resident block
constexpr int kThreads = kWarps * kLanes;
constexpr int kTileColumns = 8;  // samples a tile
constexpr int kGroupUnits = 16;  // units a group, which is the depth of one k-step in half precision

template <Precision kPrecision>
constexpr bool kHalfWords = kPrecision == Precision::kHalf || kPrecision == Precision::kBFloat16;

// 32-bit words that hold the values of a group of units.
template <Precision kPrecision>
constexpr int kGroupWords = kHalfWords<kPrecision> ? 8 : 16;

// The depth of some groups of units in words, rounded up to whole pairs of k-steps.
template <Precision kPrecision>
constexpr int64_t depth_words(int64_t groups) {
  const int64_t steps = groups * kGroupWords<kPrecision> / 8;
  return (steps + 1) / 2 * 16;
}

// Pairs of k-steps whose weights a warp keeps for each tile. A pair takes 8 registers of a lane, so 16 pairs over all
// tiles take 128. A single tile keeps only 12 pairs, since the words of all its pairs arrive at once and need
// registers, too. Products without tensor cores need half of the registers for sums.
constexpr int pairs_a_warp(Precision precision, int tiles) {
  return precision == Precision::kFloat ? 8 / tiles : std::min(12, 16 / tiles);
}

// Why a regime cannot run a scan. Plans are made at every call and rarely printed, so text is made only on demand.
enum class Reason {
  kNone,
  kFloat64,
  kProjection,
  kComputeCapability,
  kUnits,
  kRegisters,
  kNoCooperativeLaunch,
  kRefusedLaunch,
  kTooFewAtOnce,
  kBlocks,
  kSamples,
  kSharedMemory,
  kNarrowBlocks,
};

struct Refusal {
  Reason reason = Reason::kNone;
  int64_t wanted = 0, most = 0;
  const char* words = nullptr;  // CUDA's message

  std::string text() const;
};

struct Plan {
  Regime regime = Regime::kStepwise;
  Direction direction = Direction::kForward;
  int unit_blocks = 1;    // blocks that share the units of one group of columns
  int column_blocks = 1;  // groups of columns, each with weights of its own
  int units = 0;          // of a block
  int columns = 0;        // of a block: samples, a multiple of kTileColumns
  int threads = 0;
  int64_t shared_bytes = 0;               // of a block
  int64_t exchange_bytes = 0;             // of a step, in the exchange buffer
  int64_t steps = 0;                      // that one launch walks
  StepWork work;                          // of a resident regime
  double step_us = 0;                     // modelled
  int64_t dependent_products = 0;         // of a warp in a step: matrix instructions that wait for each other
  std::array<Refusal, kRegimes> refused;  // by regime; kNone: it can run the scan, or was not asked for

  int blocks() const { return unit_blocks * column_blocks; }
  Refusal& refusal(Regime of) { return refused[static_cast<int>(of)]; }
};

inline std::string Refusal::text() const {
  const std::string a = std::to_string(wanted), b = std::to_string(most);
  switch (reason) {
    case Reason::kNone: return {};
    case Reason::kFloat64: return "float64 has no tiles";
    case Reason::kProjection: return "a projection needs a product more every step";
    case Reason::kComputeCapability:
      return "compute capability " + a + ", of the device or of the code built for it, is below " + b;
    case Reason::kUnits: return a + " units are more than a block's " + b;
    case Reason::kRegisters:
      return "a warp would keep " + a + " pairs of k-steps of each tile, and has registers for " + b;
    case Reason::kNoCooperativeLaunch: return "the device has no cooperative launch";
    case Reason::kRefusedLaunch: return "the driver refused a cooperative launch: " + std::string(words);
    case Reason::kTooFewAtOnce: return "the device holds " + b + " of its " + a + " blocks at once";
    case Reason::kBlocks: return a + " blocks are more than " + b + " multiprocessors";
    case Reason::kSamples: return a + " samples are more than the " + b + " of all blocks";
    case Reason::kNarrowBlocks: return "blocks of 8 units are for forward passes of cells with four gates";
    case Reason::kSharedMemory: return a + " bytes of shared memory are more than a block's " + b;
  }
  return {};
}

// "regime: reason" of each one that cannot run the plan's scan, a line each.
inline std::string refusals(const Plan& plan) {
  std::string lines;
  for (int i = 0; i < kRegimes; ++i)
    if (const std::string text = plan.refused[i].text(); !text.empty())
      lines += std::string(name(static_cast<Regime>(i))) + ": " + text + "\n";
  return lines;
}

// Long sequences are walked in chunks, so that what a chunk's buffers hold stays in L2.
constexpr int64_t kExchangeBytes = int64_t{16} << 20;
constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of input products, or of gradients of gates

// The depth of a step's product in words: all units in forward, all gates of all units in backward.
constexpr int64_t depth_of(Precision precision, Direction direction, int gates, int64_t groups) {
  if (direction == Direction::kBackward) groups *= gates;
  const bool half = precision == Precision::kHalf || precision == Precision::kBFloat16;
  return half ? depth_words<Precision::kHalf>(groups) : depth_words<Precision::kFloat>(groups);
}

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Planner {
 public:
  Planner(const Sizes& sizes, Precision precision, Direction direction, const DeviceLimits& limits)
      : sizes_(sizes),
        precision_(precision),
        direction_(direction),
        limits_(limits),
        machine_(machine_of(limits.compute_capability)),
        groups_(divide_up(std::max<int64_t>(1, sizes.H), kGroupUnits)) {}

  // Returns the fastest plan of a regime, with `units` units per block unless that is 0. If the regime cannot run,
  // step_us < 0 and `refused` has the reason.
  Plan of(Regime regime, int units = 0) const {
    if (regime == Regime::kStepwise) return with_steps(stepwise());
    if (const Refusal refusal = no_resident(); refusal.reason != Reason::kNone) return refuse(regime, refusal);
    if (regime == Regime::kBlockResident) return with_steps(block_resident());
    const bool has_narrow = direction_ == Direction::kForward && sizes_.gates == 4;
    if (units == kGroupUnits / 2 && !has_narrow) return refuse(regime, {Reason::kNarrowBlocks});
    if (units != 0) return with_steps(grid_resident(units));
    Plan best = grid_resident(kGroupUnits);
    if (has_narrow) {
      const Plan narrow = grid_resident(kGroupUnits / 2);
      if (best.step_us < 0 || (narrow.step_us >= 0 && narrow.step_us < best.step_us)) best = narrow;
    }
    return with_steps(best);
  }

 private:
  int tiles(int units) const {
    if (direction_ == Direction::kBackward) return 1;
    return units == 16 ? sizes_.gates : (sizes_.gates + 1) / 2;
  }
  int element_bytes() const {
    if (precision_ == Precision::kDouble) return 8;
    return precision_is_half() ? 2 : 4;
  }
  int accumulate_bytes() const { return precision_ == Precision::kDouble ? 8 : 4; }
  // A forward step moves the input products, y and what is saved; a backward step what was saved, d_y and the gates'
  // gradients.
  double streamed_bytes() const {
    const int cell_state = sizes_.has_cell_state ? accumulate_bytes() : 0;
    const int saved = sizes_.saved * element_bytes();
    const int a_unit = direction_ == Direction::kForward
                           ? sizes_.gates * accumulate_bytes() + element_bytes() + saved + cell_state
                           : saved + 2 * cell_state + (1 + sizes_.gates) * element_bytes();
    return static_cast<double>(sizes_.N) * sizes_.H * a_unit;
  }
  // Multiply-adds of `rows` rows of weights over the whole depth, for some columns.
  double fma(double rows, int64_t depth, int columns) const {
    return rows * static_cast<double>(depth) * (precision_is_half() ? 2 : 1) * columns;
  }
  // Warp instructions of a block.
  double slots(Regime regime, int units, const StepWork& work) const {
    const StepCounts counts = step_counts(regime, direction_, precision_, sizes_.gates, units);
    return work.warps * counts.a_warp + work.column_tiles * counts.a_column_tile + work.pairs * counts.a_pair;
  }
  Plan refuse(Regime regime, const Refusal& refusal) const {
    Plan plan;
    plan.step_us = -1;
    plan.refusal(regime) = refusal;
    return plan;
  }

  Refusal no_resident() const {
    constexpr int kOldest = 80;
    if (precision_ == Precision::kDouble) return {Reason::kFloat64};
    if (sizes_.projected) return {Reason::kProjection};
    if (limits_.compute_capability < kOldest) return {Reason::kComputeCapability, limits_.compute_capability, kOldest};
    return {};
  }

  Plan block_resident() const {
    const int64_t depth = depth_of(precision_, direction_, sizes_.gates, groups_);
    const int most = pairs_a_warp(precision_, tiles(16));
    if (groups_ > kWarps) return refuse(Regime::kBlockResident, {Reason::kUnits, sizes_.H, kWarps * kGroupUnits});
    if (depth / 16 > most) return refuse(Regime::kBlockResident, {Reason::kRegisters, depth / 16, most});
    Plan plan;
    plan.regime = Regime::kBlockResident;
    plan.units = static_cast<int>(groups_ * kGroupUnits);
    plan.columns = kTileColumns;
    plan.column_blocks = static_cast<int>(divide_up(std::max<int64_t>(1, sizes_.N), kTileColumns));
    plan.threads = static_cast<int>(groups_ * kLanes);
    plan.shared_bytes = 2 * depth * kTileColumns * 4;
    plan.dependent_products = depth / 8;
    const double warps = static_cast<double>(groups_);
    const double words = static_cast<double>(depth) * kTileColumns;
    StepWork& work = plan.work;
    work.warps = warps;
    work.pairs = warps * static_cast<double>(depth / 16);
    work.slots = slots(plan.regime, kGroupUnits, work);
    work.fma = fma(warps * tiles(kGroupUnits) * 16, depth, plan.columns);
    work.dependent = static_cast<double>(plan.dependent_products);
    // A store writes one cell of every lane. Neighbouring lanes j write every second column, whose words lie 32 apart,
    // so four lanes share a bank (without tensor cores two). Every warp reads all words.
    constexpr double kCellsOfALane = 4, kWavefrontBytes = 128;
    const double stores = warps * kCellsOfALane * (direction_ == Direction::kBackward ? sizes_.gates : 1);
    const double lanes_a_bank = precision_ == Precision::kFloat ? 2 : 4;
    work.shared_bytes = stores * lanes_a_bank * kWavefrontBytes + warps * words * 4;
    work.barriers = 1;
    work.streamed_bytes = streamed_bytes();
    work.waves = static_cast<double>(divide_up(plan.column_blocks, std::max(1, limits_.multiprocessors)));
    plan.step_us = step_us(work, precision_, machine_);
    return plan;
  }

  Plan grid_resident(int units) const {
    const Regime regime = Regime::kGridResident;
    if (limits_.refused_launch) return refuse(regime, {Reason::kRefusedLaunch, 0, 0, limits_.refused_launch});
    if (!limits_.cooperative) return refuse(regime, {Reason::kNoCooperativeLaunch});
    const int64_t depth = depth_of(precision_, direction_, sizes_.gates, groups_);
    const int64_t pairs = divide_up(depth / 16, kWarps);
    const int most = pairs_a_warp(precision_, tiles(units));
    if (pairs > most) return refuse(regime, {Reason::kRegisters, pairs, most});
    Plan plan;
    plan.regime = regime;
    plan.units = units;
    plan.unit_blocks = static_cast<int>(groups_ * kGroupUnits / units);
    if (plan.unit_blocks > limits_.multiprocessors)
      return refuse(regime, {Reason::kBlocks, plan.unit_blocks, limits_.multiprocessors});
    const int64_t column_tiles = divide_up(std::max<int64_t>(1, sizes_.N), kTileColumns);
    const int64_t of_block = divide_up(column_tiles, limits_.multiprocessors / plan.unit_blocks);
    const int64_t most_tiles = units == 16 ? 4 : 8;
    if (of_block > most_tiles)
      return refuse(
          regime, {Reason::kSamples, sizes_.N, limits_.multiprocessors / plan.unit_blocks * most_tiles * kTileColumns});
    plan.columns = static_cast<int>(of_block * kTileColumns);
    plan.column_blocks = static_cast<int>(divide_up(column_tiles, of_block));
    plan.threads = kThreads;
    plan.shared_bytes = 2 * of_block * kWarps * tiles(units) * 16 * kTileColumns * 4;
    if (plan.shared_bytes > limits_.shared_bytes_per_block)
      return refuse(regime, {Reason::kSharedMemory, plan.shared_bytes, limits_.shared_bytes_per_block});
    plan.exchange_bytes = plan.column_blocks * plan.columns * depth * 4;
    plan.dependent_products = 2 * pairs;
    StepWork& work = plan.work;
    work.warps = kWarps;
    work.column_tiles = static_cast<double>(of_block);
    work.pairs = static_cast<double>(of_block * depth / 16);
    work.slots = slots(regime, units, work);
    work.fma = fma(tiles(units) * 16, depth, plan.columns);
    work.dependent = static_cast<double>(plan.dependent_products);
    work.shared_bytes = static_cast<double>(plan.shared_bytes);  // one of two halves, written once and read once
    work.barriers = 1;
    work.exchanged_bytes = static_cast<double>(plan.exchange_bytes) * plan.unit_blocks;
    work.streamed_bytes = streamed_bytes();
    plan.step_us = step_us(work, precision_, machine_);
    return plan;
  }

  Plan stepwise() const {
    Plan plan;
    const double weights = static_cast<double>(sizes_.gates) * sizes_.H * sizes_.H;
    const double products = static_cast<double>(sizes_.N) * sizes_.gates * sizes_.H;
    LaunchWork work;
    work.launches = sizes_.projected ? 4 : 2;
    work.fma = weights * sizes_.N;
    work.bytes = weights * element_bytes() + 2 * products * accumulate_bytes() + streamed_bytes();
    plan.step_us = step_us(work, precision_, machine_, limits_.multiprocessors);
    return plan;
  }

  Plan with_steps(Plan plan) const {
    plan.direction = direction_;
    const int64_t row_bytes = sizes_.gates * sizes_.H * (precision_ == Precision::kDouble ? 8 : 4);
    int64_t steps = kChunkBytes / std::max<int64_t>(1, row_bytes * sizes_.N);
    if (plan.exchange_bytes > 0) steps = std::min(steps, kExchangeBytes / plan.exchange_bytes);
    plan.steps = std::clamp<int64_t>(steps, 1, std::max<int64_t>(1, sizes_.T));
    return plan;
  }
  bool precision_is_half() const { return precision_ == Precision::kHalf || precision_ == Precision::kBFloat16; }

  Sizes sizes_;
  Precision precision_;
  Direction direction_;
  DeviceLimits limits_;
  const Machine& machine_;
  int64_t groups_;
};

// A regime by name, and the units of its blocks: "grid-resident/8" or "grid-resident/16". 0: the faster of both.
struct Forced {
  std::string_view regime;
  int units = 0;
};
constexpr Forced forced_by(std::string_view text) {
  for (const int units : {kGroupUnits / 2, kGroupUnits}) {
    const std::string_view suffix = units == kGroupUnits ? "/16" : "/8";
    if (text.ends_with(suffix)) return {text.substr(0, text.size() - suffix.size()), units};
  }
  return {text};
}

// Returns the fastest plan, or that of a forced regime. If that cannot run, step_us < 0 and `refused` has the reason.
inline Plan plan(const Sizes& sizes, Precision precision, Direction direction, const DeviceLimits& limits,
                 std::string_view forced = {}) {
  const Planner planner(sizes, precision, direction, limits);
  const auto [forced_regime, units] = forced_by(forced);
  Plan best;
  best.step_us = -1;
  std::array<Refusal, kRegimes> refused;
  for (const Regime regime : {Regime::kBlockResident, Regime::kGridResident, Regime::kStepwise}) {
    if (!forced.empty() && forced_regime != name(regime)) continue;
    Plan candidate = planner.of(regime, units);
    refused[static_cast<int>(regime)] = candidate.refusal(regime);
    if (candidate.step_us >= 0 && (best.step_us < 0 || candidate.step_us < best.step_us)) best = candidate;
  }
  best.refused = refused;
  return best;
}

}  // namespace fastrnn::cuda
