// A table holds plans for every GPU generation: the regime, its cut, its modelled time, and why a faster one was
// refused.
#include "check.h"
#include "cuda/plan.h"

int main() {
  using namespace fastrnn::cuda;
  using fastrnn::test::check;
  constexpr DeviceLimits kT4{75, 40, 64 << 10, true}, kA100{80, 108, 163 << 10, true},
      kRtx4090{89, 128, 99 << 10, true}, kH100{90, 132, 227 << 10, true}, kShared{90, 132, 227 << 10, false},
      kRefused{90, 132, 227 << 10, true, "operation not supported"};
  constexpr auto kForward = Direction::kForward, kBackward = Direction::kBackward;
  constexpr auto kBlock = Regime::kBlockResident, kGrid = Regime::kGridResident, kStep = Regime::kStepwise;
  struct Row {
    DeviceLimits limits;
    Precision precision;
    Direction direction;
    int gates;
    int64_t N, H;
    bool projected;
    Regime regime;
    int unit_blocks, columns;
    double most_us;
    const char* refused;  // the refusals of other regimes contain it
  };
  const Row table[] = {
      {kH100, Precision::kHalf, kForward, 4, 8, 128, false, kGrid, 16, 8, 1.2, ""},
      {kH100, Precision::kHalf, kForward, 4, 1024, 128, false, kBlock, 1, 8, 1.6, "1024 samples are more than the"},
      {kH100, Precision::kBFloat16, kBackward, 4, 8, 64, false, kGrid, 4, 8, 1.3, ""},
      {kH100, Precision::kBFloat16, kBackward, 4, 8, 128, false, kGrid, 8, 8, 1.4, "block-resident: a warp would keep"},
      {kH100, Precision::kHalf, kForward, 4, 16, 768, false, kGrid, 48, 8, 2.2, "block-resident: 768 units"},
      {kH100, Precision::kBFloat16, kBackward, 4, 16, 768, false, kGrid, 48, 8, 3.3, "block-resident"},
      {kH100, Precision::kBFloat16, kForward, 3, 64, 512, false, kGrid, 32, 16, 2.7, "block-resident"},
      {kH100, Precision::kTf32, kForward, 4, 32, 1024, false, kGrid, 128, 32, 10, "block-resident"},
      {kH100, Precision::kTf32, kBackward, 4, 32, 1024, false, kStep, 1, 0, 20, "has registers for 12"},
      {kA100, Precision::kHalf, kForward, 4, 16, 768, false, kGrid, 48, 8, 2.8, "block-resident"},
      {kRtx4090, Precision::kHalf, kForward, 4, 16, 768, false, kGrid, 48, 8, 2.2, "block-resident"},
      {kH100, Precision::kFloat, kForward, 4, 16, 32, false, kGrid, 4, 8, 1.4, ""},
      {kH100, Precision::kFloat, kForward, 4, 2048, 32, false, kBlock, 1, 8, 3.2, ""},
      {kH100, Precision::kFloat, kForward, 3, 16, 100, false, kGrid, 7, 8, 4, "block-resident: a warp would keep"},
      {kH100, Precision::kHalf, kForward, 4, 16, 4096, false, kStep, 1, 0, 60, "grid-resident: a warp would keep"},
      {kH100, Precision::kHalf, kForward, 4, 4096, 768, false, kStep, 1, 0, 110, "4096 samples are more than the"},
      {kH100, Precision::kDouble, kForward, 4, 16, 64, false, kStep, 1, 0, 60, "float64 has no tiles"},
      {kH100, Precision::kHalf, kForward, 4, 16, 64, true, kStep, 1, 0, 60, "a projection needs a product more"},
      {kT4, Precision::kHalf, kForward, 4, 16, 64, false, kStep, 1, 0, 60, "compute capability 75, of the device"},
      {kShared, Precision::kHalf, kForward, 4, 16, 768, false, kStep, 1, 0, 60, "no cooperative launch"},
      {kRefused, Precision::kHalf, kForward, 4, 16, 768, false, kStep, 1, 0, 60,
       "the driver refused a cooperative launch: operation not supported"},
  };
  for (const Row& row : table) {
    const Plan chosen = plan({row.gates, 100, row.N, row.H, row.projected}, row.precision, row.direction, row.limits);
    const std::string refused = refusals(chosen);
    const bool right = chosen.regime == row.regime && chosen.unit_blocks == row.unit_blocks &&
                       chosen.columns == row.columns && chosen.step_us <= row.most_us && chosen.step_us > 0 &&
                       refused.find(row.refused) != std::string::npos;
    check(right, std::string(name(chosen.regime)) + " " + std::to_string(chosen.unit_blocks) + " unit blocks, " +
                     std::to_string(chosen.columns) + " columns, " + std::to_string(chosen.step_us) + " us: gates " +
                     std::to_string(row.gates) + " N " + std::to_string(row.N) + " H " + std::to_string(row.H) + "\n" +
                     refused);
  }
  // Every plan must keep to these limits.
  for (const DeviceLimits& limits : {kT4, kA100, kRtx4090, kH100})
    for (const auto precision : {Precision::kHalf, Precision::kTf32, Precision::kFloat, Precision::kDouble})
      for (const auto direction : {kForward, kBackward})
        for (const int gates : {1, 3, 4})
          for (const int64_t N : {0, 1, 17, 300})
            for (const int64_t H : {1, 16, 17, 129, 700, 2000}) {
              const Plan chosen = plan({gates, 1000, N, H, false}, precision, direction, limits);
              check(chosen.step_us > 0 && chosen.steps >= 1 && chosen.steps <= 1000, "a plan without time or steps");
              check(chosen.shared_bytes <= limits.shared_bytes_per_block, "more shared memory than there is");
              if (chosen.regime == kStep) continue;
              check(chosen.column_blocks * chosen.columns >= N, "samples without a block");
              check(chosen.unit_blocks * chosen.units >= H, "units without a block");
              check(chosen.regime == kBlock || chosen.blocks() <= limits.multiprocessors,
                    "blocks that cannot be resident");
              const int64_t depth = depth_of(precision, direction, gates, divide_up(H, kGroupUnits));
              const int tiles = direction == kBackward ? 1 : chosen.units == 8 ? (gates + 1) / 2 : gates;
              const int64_t pairs = chosen.regime == kBlock ? depth / 16 : divide_up(depth / 16, kWarps);
              check(pairs <= pairs_a_warp(precision, tiles), "weights without registers");
            }
  check(plan({4, 10, 16, 768, false}, Precision::kHalf, kForward, kH100, "stepwise").regime == kStep,
        "a forced regime");
  check(plan({4, 10, 16, 768, false}, Precision::kHalf, kForward, kH100, "block-resident").step_us < 0,
        "a forced regime that cannot run");
  return fastrnn::test::finish();
}
