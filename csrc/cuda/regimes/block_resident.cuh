// Block-resident: one block keeps all of W_hh in registers, and walks eight samples through all steps without others.
//
// A warp owns 16 units and the whole depth, so a product needs no sum over warps, and a lane has every gate of its
// cells in its own accumulators. Warps exchange states through two alternating buffers in shared memory, so a step
// needs only one barrier.
#pragma once

#include "cuda/step.cuh"

namespace fastrnn::cuda {

// A warp's part of the recurrent product: kTiles tiles of 16 rows of weights, over the whole depth.
template <Precision kPrecision, int kTiles>
struct WarpProduct {
  using Tile = cuda::Tile<kPrecision>;
  static constexpr int kPairs = pairs_a_warp(kPrecision, kTiles);

  typename Tile::Weights weights[kTiles][kPairs];
  int pairs;

  template <class Weight>
  FASTRNN_DEVICE WarpProduct(int pairs_of_depth, Weight&& weight) : pairs(pairs_of_depth) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair)
        // mutant: not multiplied
        if (pair < pairs)
          weights[tile][pair] = load_weights<kPrecision>(pair, [&](int row, int k) { return weight(tile, row, k); });
  }

  FASTRNN_DEVICE void run(const uint32_t* words, float (&product)[kTiles][4]) const {
    typename Tile::Sums sums[kTiles];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= pairs) break;
      uint4 states[Tile::kVectors];
#pragma unroll
      for (int vector = 0; vector < Tile::kVectors; ++vector)
        states[vector] = *reinterpret_cast<const uint4*>(words + Tile::vector_index(pair, vector));
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) Tile::multiply(sums[tile], weights[tile][pair], states);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) Tile::finish(sums[tile], product[tile]);
  }
};

// The four cells of a lane: rows g and g + 8 of its warp's units, columns 2 j and 2 j + 1.
struct LaneCells {
  static constexpr int kCells = 4;
  int64_t first_unit, first_sample;

  FASTRNN_DEVICE LaneCells()
      : first_unit(threadIdx.x / kLanes * kGroupUnits), first_sample(int64_t{blockIdx.x} * kTileColumns) {}
  FASTRNN_DEVICE static int unit_in_group(int cell) { return Lane::current().g + cell / 2 * 8; }
  FASTRNN_DEVICE static int column(int cell) { return 2 * Lane::current().j + cell % 2; }
  FASTRNN_DEVICE int64_t unit(int cell) const { return first_unit + unit_in_group(cell); }
  FASTRNN_DEVICE int64_t sample(int cell) const { return first_sample + column(cell); }
};

// Stores a cell's value among the words that the product reads.
template <Precision kPrecision>
FASTRNN_DEVICE void share(uint32_t* words, int64_t group, int cell, float value) {
  publish<kPrecision>(value, LaneCells::unit_in_group(cell), [&](int word, uint32_t bits) {
    words[Tile<kPrecision>::word_index(group * kGroupWords<kPrecision> + word, LaneCells::column(cell))] = bits;
  });
}

// Zeroes the words: a product also multiplies the padding that makes the depth a whole number of pairs.
FASTRNN_DEVICE void clear(uint32_t* words, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) words[i] = 0;
  __syncthreads();
}

template <class Cell, class S, Precision kPrecision>
__global__ void __launch_bounds__(kThreads, 1) block_forward(const __grid_constant__ ForwardChunk<S> chunk) {
#if __CUDA_ARCH__ >= 800
  using Product = WarpProduct<kPrecision, Cell::kGates>;
  constexpr int kCells = LaneCells::kCells;
  extern __shared__ uint4 shared[];  // [2][words of h], aligned for reads of 16 bytes
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  const LaneCells cells;
  const int words = static_cast<int>(depth_words<kPrecision>(blockDim.x / kLanes)) * kTileColumns;
  uint32_t* const h = reinterpret_cast<uint32_t*>(shared);
  clear(h, 2 * words);
  const Product product(words / (16 * kTileColumns), [&](int gate, int row, int k) -> float {
    const int64_t unit = cells.first_unit + row;
    return unit < H && k < H ? load<S>(scan.weights.hh(gate * H + unit, k)) : 0.f;
  });
  const Bias<Cell, S> bias[2] = {{scan, cells.unit(0)}, {scan, cells.unit(2)}};
  ForwardInputs<Cell, S> inputs[kCells];
  UnitState<S> state[kCells];
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) {
    state[cell] = enter<Cell>(chunk, cells.sample(cell), cells.unit(cell));
    inputs[cell].fetch(chunk, chunk.first, cells.sample(cell), cells.unit(cell));
    share<kPrecision>(h, threadIdx.x / kLanes, cell, state[cell].h);
  }
  for (int64_t step = 0; step < chunk.steps; ++step) {
    __syncthreads();
    float gates[Cell::kGates][4];
    product.run(h + step % 2 * words, gates);
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      float gh[Cell::kGates];
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate) gh[gate] = gates[gate][cell];
      advance(chunk, chunk.first + step, cells.sample(cell), cells.unit(cell), inputs[cell], bias[cell / 2], gh,
              state[cell]);
      share<kPrecision>(h + (step + 1) % 2 * words, threadIdx.x / kLanes, cell, state[cell].h);
      inputs[cell].fetch(chunk, chunk.first + step + 1, cells.sample(cell), cells.unit(cell));
    }
  }
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) leave<Cell>(chunk, cells.sample(cell), cells.unit(cell), state[cell]);
#endif
}

template <class Cell, class S, Precision kPrecision>
__global__ void __launch_bounds__(kThreads, 1) block_backward(const __grid_constant__ BackwardChunk<S> chunk) {
#if __CUDA_ARCH__ >= 800
  using Product = WarpProduct<kPrecision, 1>;
  constexpr int kCells = LaneCells::kCells;
  extern __shared__ uint4 shared[];  // [2][words of d_gh]
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  const LaneCells cells;
  const int groups = blockDim.x / kLanes;
  const int padded = groups * kGroupUnits;
  const int words = static_cast<int>(depth_words<kPrecision>(groups * Cell::kGates)) * kTileColumns;
  uint32_t* const d_gates = reinterpret_cast<uint32_t*>(shared);
  clear(d_gates, 2 * words);
  const Product product(words / (16 * kTileColumns), [&](int, int row, int k) -> float {
    const int gate = k / padded, from = k % padded;
    const int64_t to = cells.first_unit + row;
    return gate < Cell::kGates && from < H && to < H ? load<S>(scan.weights.hh(gate * H + from, to)) : 0.f;
  });
  BackwardInputs<Cell, S> inputs[kCells];
  UnitState<S> d_state[kCells];
  const int64_t last = chunk.first + chunk.steps - 1;
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) {
    d_state[cell] = enter<Cell>(chunk, cells.sample(cell), cells.unit(cell));
    inputs[cell].fetch(chunk, last, cells.sample(cell), cells.unit(cell));
  }
  for (int64_t step = 0; step < chunk.steps; ++step) {
    uint32_t* const now = d_gates + step % 2 * words;
    bool ran[kCells];
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
      float d_gh[Cell::kGates];
      retreat(chunk, last - step, cells.sample(cell), cells.unit(cell), inputs[cell], d_state[cell], d_gh);
      ran[cell] = inputs[cell].runs;
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        share<kPrecision>(now, gate * groups + threadIdx.x / kLanes, cell, d_gh[gate]);
      inputs[cell].fetch(chunk, last - step - 1, cells.sample(cell), cells.unit(cell));
    }
    __syncthreads();
    float through_gh[1][4];
    product.run(now, through_gh);
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell)
      if (ran[cell]) d_state[cell].h += through_gh[0][cell];  // skips idle samples: 0 * NaN is NaN
  }
#pragma unroll
  for (int cell = 0; cell < kCells; ++cell) leave<Cell>(chunk, cells.sample(cell), cells.unit(cell), d_state[cell]);
#endif
}

}  // namespace fastrnn::cuda
