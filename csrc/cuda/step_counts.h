// Warp instructions of a step of the resident kernels. Written by `python -m benchmarks.step_counts`: do not edit.
#pragma once

#include "cuda/model.h"

namespace fastrnn::cuda {

struct StepCounts {
  Regime regime;
  Direction direction;
  Precision precision;
  int gates, units;
  double a_warp, a_column_tile, a_pair;
};
inline constexpr StepCounts kStepCounts[] = {
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 1, 16, 493, 0, 6},
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 3, 16, 675, 0, 10},
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 4, 16, 799, 0, 12},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 1, 16, 655, 0, 5},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 3, 16, 1040, 0, 9},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 4, 16, 1387, 0, 11},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 1, 16, 681, 0, 76},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 3, 16, 1194, 0, 205},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 4, 16, 1601, 0, 269},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 1, 16, 576, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 3, 16, 1065, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 4, 16, 1351, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 1, 16, 561, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 3, 16, 992, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 4, 16, 1429, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 1, 16, 596, 0, 83},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 3, 16, 953, 0, 82},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 4, 16, 1365, 0, 84},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 1, 16, 145, 1693, 39},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 3, 16, 257, 1749, 58},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 4, 16, 256, 1939, 71},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 1, 16, 84, 1396, 23},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 3, 16, 153, 1791, 34},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 4, 16, 158, 2303, 41},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 1, 16, 50, 1397, 190},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 3, 16, 61, 3972, 379},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 4, 16, 63, 5309, 458},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 1, 16, 67, 1480, 30},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 3, 16, 78, 2173, 30},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 4, 16, 89, 2559, 26},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 1, 16, 57, 1373, 25},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 3, 16, 69, 1765, 23},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 4, 16, 91, 2241, 23},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 1, 16, 39, 1333, 192},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 3, 16, 44, 1629, 198},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 4, 16, 56, 2045, 206},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 4, 8, 122, 1762, 41},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 4, 8, 80, 1708, 26},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 4, 8, 51, 2540, 284},
};

constexpr StepCounts step_counts(Regime regime, Direction direction, Precision precision, int gates, int units) {
  if (precision == Precision::kBFloat16) precision = Precision::kHalf;
  for (const StepCounts& row : kStepCounts)
    if (row.regime == regime && row.direction == direction && row.precision == precision && row.gates == gates &&
        row.units == units)
      return row;
  return {};
}

}  // namespace fastrnn::cuda
