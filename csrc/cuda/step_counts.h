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
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 1, 16, 520, 0, 6},
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 3, 16, 688, 0, 10},
    {Regime::kBlockResident, Direction::kForward, Precision::kHalf, 4, 16, 819, 0, 12},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 1, 16, 670, 0, 5},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 3, 16, 1055, 0, 9},
    {Regime::kBlockResident, Direction::kForward, Precision::kTf32, 4, 16, 1409, 0, 11},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 1, 16, 702, 0, 77},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 3, 16, 1217, 0, 206},
    {Regime::kBlockResident, Direction::kForward, Precision::kFloat, 4, 16, 1626, 0, 269},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 1, 16, 625, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 3, 16, 1061, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kHalf, 4, 16, 1405, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 1, 16, 604, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 3, 16, 986, 0, 6},
    {Regime::kBlockResident, Direction::kBackward, Precision::kTf32, 4, 16, 1460, 0, 5},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 1, 16, 639, 0, 82},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 3, 16, 957, 0, 82},
    {Regime::kBlockResident, Direction::kBackward, Precision::kFloat, 4, 16, 1403, 0, 83},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 1, 16, 145, 1727, 39},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 3, 16, 264, 1828, 60},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 4, 16, 264, 2032, 73},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 1, 16, 86, 1426, 23},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 3, 16, 155, 1819, 34},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 4, 16, 161, 2340, 41},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 1, 16, 50, 1434, 191},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 3, 16, 62, 4000, 380},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 4, 16, 64, 5337, 459},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 1, 16, 69, 1551, 30},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 3, 16, 80, 2180, 29},
    {Regime::kGridResident, Direction::kBackward, Precision::kHalf, 4, 16, 94, 2578, 25},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 1, 16, 59, 1426, 25},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 3, 16, 71, 1771, 23},
    {Regime::kGridResident, Direction::kBackward, Precision::kTf32, 4, 16, 90, 2271, 22},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 1, 16, 40, 1385, 194},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 3, 16, 46, 1642, 197},
    {Regime::kGridResident, Direction::kBackward, Precision::kFloat, 4, 16, 59, 2062, 205},
    {Regime::kGridResident, Direction::kForward, Precision::kHalf, 4, 8, 122, 1793, 41},
    {Regime::kGridResident, Direction::kForward, Precision::kTf32, 4, 8, 81, 1732, 26},
    {Regime::kGridResident, Direction::kForward, Precision::kFloat, 4, 8, 52, 2559, 284},
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
