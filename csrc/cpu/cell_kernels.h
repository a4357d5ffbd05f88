// The seam between the engine and a cell: the engine is compiled once for a storage type, and calls the cell for the
// products of a panel while they are in the first-level cache.
#pragma once

#include <cstdint>

#include "cells/cell.h"
#include "cpu/chunks.h"

namespace fastrnn::FASTRNN_ISA {

template <class S>
class ForwardScan;
template <class S>
class BackwardScan;
template <class S>
class LaneForward;
template <class S>
class LaneBackward;

// Rows of a step whose products with a panel the cell turns into the next state.
template <class S>
struct ForwardRows {
  const Part& part;
  int64_t t;
  int64_t first, count;  // of the part's rows
  Range panels;
  int64_t chunk_row;        // the step's first row in the chunk's buffers
  const Accumulate<S>* gh;  // [panel][count][columns of the panel]
  const Operand<S>* h;
  Operand<S>* h_next;
};

// Rows of a chunk whose gates are computed again.
template <class S>
struct RecomputedRows {
  int64_t first, count;  // of the chunk's rows
  Range panels;
  const Accumulate<S>* gh;  // [panel][count][columns of the panel]
};

// A row whose gate gradients the cell computes.
struct BackwardRow {
  int64_t chunk_row;
  int64_t t;
  int64_t row;
  Range units;
};

// Samples [first_row, first_row + lanes) of the batch, which lie in the lanes of vectors.
struct LaneBlock {
  int64_t first_row;
  int64_t lanes;
};

// What backward over a block writes to.
template <class A>
struct LaneSums {
  A* work;    // rows of lanes
  A* recent;  // sums of the weight gradients over a few steps
  A* sums;    // those over all samples of a slot
};

template <class S>
struct CellKernels {
  CellTraits cell;
  void (*forward)(ForwardScan<S>&, const ForwardRows<S>&);
  void (*recompute)(BackwardScan<S>&, const RecomputedRows<S>&);
  void (*backward)(BackwardScan<S>&, const BackwardRow&);
  // Through all steps of a block; null where a cell has no kernels with samples in lanes.
  void (*forward_in_lanes)(const LaneForward<S>&, const LaneBlock&, Accumulate<S>* work) = nullptr;
  void (*backward_in_lanes)(const LaneBackward<S>&, const LaneBlock&, const LaneSums<Accumulate<S>>&) = nullptr;
};

}  // namespace fastrnn::FASTRNN_ISA
