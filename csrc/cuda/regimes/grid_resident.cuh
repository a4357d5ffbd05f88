// Grid-resident: W_hh is split by hidden units over blocks and stays in registers; blocks exchange states through L2.
//
// The exchange buffer has one slot per step, filled with kNotYet before the launch, and no slot is written twice. A
// block polls the very words that it multiplies until none is kNotYet, so a step costs one trip through L2, without a
// fence, a flag or a grid-wide barrier. Each warp of a block multiplies its own slice of the depth; the partial
// products of the warps are summed through shared memory, behind the only barrier of a step.
#pragma once

#include "cuda/step.cuh"

namespace fastrnn::cuda {

constexpr uint32_t kWatchdogTicks = 20'000;  // of 2^20 ns, about 1 ms: 21 seconds

// A relaxed load suffices, without a fence or a "memory" clobber: each word shows only that it has itself arrived.
FASTRNN_DEVICE uint4 load_relaxed(const uint32_t* words) {
  uint4 loaded;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(loaded.x), "=r"(loaded.y), "=r"(loaded.z), "=r"(loaded.w)
               : "l"(words));
  return loaded;
}

FASTRNN_DEVICE void store_relaxed(uint32_t* word, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(word), "r"(value));
}

// Hides `unit` from the optimizer, which would hoist the addresses of all items and gates into the weights' registers.
FASTRNN_DEVICE void keep_apart(int& unit) { asm volatile("" : "+r"(unit)); }

FASTRNN_DEVICE uint32_t ticks() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return static_cast<uint32_t>(now >> 20);
}

// A cooperative launch guarantees that the blocks for which a block waits run at the same time. If one is lost anyway,
// the watchdog traps: an error is better than a GPU that hangs.
struct Watchdog {
  uint32_t since = 0;

  FASTRNN_DEVICE void poll() {
    const uint32_t now = ticks();
    if (since == 0) since = now;
    // mutant: nap
    if (now == since) return;  // data normally arrives within one tick; sleep only after that
    if (now - since > kWatchdogTicks) __trap();
    __nanosleep(100);
  }
};

// A block's part of the recurrent product: kTiles tiles of 16 rows of weights, with the depth divided among the warps.
template <Precision kPrecision, int kTiles>
struct GridProduct {
  using Tile = cuda::Tile<kPrecision>;
  static constexpr int kPairs = pairs_a_warp(kPrecision, kTiles);
  // Column tiles multiplied at once; registers for the words that arrive limit them.
  static constexpr int kColumnTiles = Tile::kTensorCores && kPairs <= 5 ? 2 : 1;
  // A column tile's partial products: [warp][tile][value][lane].
  static constexpr int kPartFloats = kWarps * kTiles * 4 * kLanes;

  typename Tile::Weights weights[kTiles][kPairs];
  int first_pair, pairs;  // of this warp
  bool odd;               // the second k-step of this warp's last pair is padding, which no block writes
  float* parts;           // [step % 2][column tiles][kPartFloats]

  // weight(tile, row of the tile, k)
  template <class Weight>
  FASTRNN_DEVICE GridProduct(int groups, float* shared, Weight&& weight) : parts(shared) {
    const int steps = groups * kGroupWords<kPrecision> / 8, all_pairs = (steps + 1) / 2;
    const int slice = (all_pairs + kWarps - 1) / kWarps, warp = threadIdx.x / kLanes;
    first_pair = warp * slice;
    pairs = min(slice, max(0, all_pairs - first_pair));
    odd = steps % 2 && first_pair + pairs == all_pairs;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair)
        // mutant: not multiplied
        if (pair < pairs)
          weights[tile][pair] =
              load_weights<kPrecision>(first_pair + pair, [&](int row, int k) { return weight(tile, row, k); });
  }

  FASTRNN_DEVICE float* part(int parity, int column_tiles, int column_tile) const {
    return parts + (parity * column_tiles + column_tile) * kPartFloats;
  }

  // Multiplies the words of a slot, [column tiles][tile_words], as they arrive.
  FASTRNN_DEVICE void run(const uint32_t* slot, int tile_words, int column_tiles, int parity) const {
    for (int first = 0; first < column_tiles; first += kColumnTiles) {
      typename Tile::Sums sums[kColumnTiles][kTiles];
      if constexpr (Tile::kTensorCores)
        multiply_all(slot, tile_words, column_tiles, first, sums);
      else
        multiply_by_pairs(slot + first * tile_words, sums[0]);
#pragma unroll
      for (int column = 0; column < kColumnTiles; ++column) {
        if (first + column >= column_tiles) break;
        float* to = part(parity, column_tiles, first + column) + threadIdx.x / kLanes * kTiles * 4 * kLanes;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          float values[4];
          Tile::finish(sums[column][tile], values);
#pragma unroll
          for (int i = 0; i < 4; ++i) to[(tile * 4 + i) * kLanes + threadIdx.x % kLanes] = values[i];
        }
      }
    }
  }

  // Sums value i of this lane in a tile over all warps, and so over the whole depth.
  FASTRNN_DEVICE float sum(int parity, int column_tiles, int column_tile, int tile, int i) const {
    const float* from = part(parity, column_tiles, column_tile) + (tile * 4 + i) * kLanes + threadIdx.x % kLanes;
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += from[warp * kTiles * 4 * kLanes];
    return total;
  }

 private:
  FASTRNN_DEVICE bool complete(uint4 words, int pair) const {
    const bool half = odd && pair == pairs - 1;
    return words.x != kNotYet && words.y != kNotYet && (half || (words.z != kNotYet && words.w != kNotYet));
  }

  // Loads all that this warp needs at once, then loads again only what had not arrived.
  FASTRNN_DEVICE void multiply_all(const uint32_t* slot, int tile_words, int column_tiles, int first,
                                   typename Tile::Sums (&sums)[kColumnTiles][kTiles]) const {
    uint4 states[kColumnTiles][kPairs];
    Watchdog watchdog;
    const auto wanted = [&](int column, int pair) { return first + column < column_tiles && pair < pairs; };
    const auto ask = [&](int column, int pair) {
      return load_relaxed(slot + (first + column) * tile_words + Tile::vector_index(first_pair + pair, 0));
    };
#pragma unroll
    for (int column = 0; column < kColumnTiles; ++column)
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair)
        if (wanted(column, pair)) states[column][pair] = ask(column, pair);
    for (bool waiting = true; waiting;) {
      waiting = false;
#pragma unroll
      for (int column = 0; column < kColumnTiles; ++column)
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair)
          if (wanted(column, pair) && !complete(states[column][pair], pair)) {
            states[column][pair] = ask(column, pair);
            waiting = true;
          }
      // mutant: nap
      if (waiting) watchdog.poll();
    }
    __syncwarp();  // lanes leave the loop at different times; a matrix instruction needs all of them
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= pairs) break;
#pragma unroll
      for (int column = 0; column < kColumnTiles; ++column) {
        // mutant: columns not there
        if (first + column >= column_tiles) break;
        uint4(&arrived)[1] = reinterpret_cast<uint4(&)[1]>(states[column][pair]);
        if (odd && pair == pairs - 1) arrived[0].z = arrived[0].w = 0;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) Tile::multiply(sums[column][tile], weights[tile][pair], arrived);
      }
    }
  }

  // Without tensor cores a lane reads eight vectors per pair: all pairs at once would take too many registers.
  FASTRNN_DEVICE void multiply_by_pairs(const uint32_t* slot, typename Tile::Sums (&sums)[kTiles]) const {
    Watchdog watchdog;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair >= pairs) break;
      uint4 states[Tile::kVectors];
      for (bool waiting = true; waiting;) {
        waiting = false;
#pragma unroll
        for (int vector = 0; vector < Tile::kVectors; ++vector)
          states[vector] = load_relaxed(slot + Tile::vector_index(first_pair + pair, vector));
#pragma unroll
        for (int vector = 0; vector < Tile::kVectors; ++vector) {
          const uint4 words = states[vector];
          waiting |= words.x == kNotYet || words.y == kNotYet || words.z == kNotYet || words.w == kNotYet;
        }
        // mutant: nap
        if (waiting) watchdog.poll();
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) Tile::multiply(sums[tile], weights[tile][pair], states);
    }
  }
};

// The cells that a thread computes: one unit, in the same column of up to kItems column tiles. kShares warps divide the
// cells of a column tile; GateRows::value_of() tells which of the accumulator's four values belong to a warp's share.
template <int kUnits>
struct Ownership {
  static constexpr int kShares = kUnits / 4;  // 16 units: 4 warps a column tile; 8: 2
  static constexpr int kTilesAtOnce = kWarps / kShares;
  static constexpr int kItems = 2;
  static constexpr int kColumnTiles = kItems * kTilesAtOnce;  // at most, for each block

  int share, first_tile, unit, column;  // unit of the block, column of a tile

  FASTRNN_DEVICE Ownership() {
    const auto [g, j] = Lane::current();
    const int warp = threadIdx.x / kLanes;
    share = warp % kShares;
    first_tile = warp / kShares;
    unit = g + share / 2 * 8;
    column = 2 * j + share % 2;
  }
  FASTRNN_DEVICE int tile(int item) const { return first_tile + item * kTilesAtOnce; }
};

// Maps the rows of a block's weight tiles to gates and units. With 16 units a tile holds one gate; with 8 units it
// holds two gates of 8 rows each.
template <int kUnits, int kGates>
struct GateRows {
  static constexpr int kTiles = kUnits == 16 ? kGates : (kGates + 1) / 2;
  FASTRNN_DEVICE static int gate(int tile, int row) { return kUnits == 16 ? tile : 2 * tile + row / 8; }
  FASTRNN_DEVICE static int unit(int row) { return kUnits == 16 ? row : row % 8; }
  FASTRNN_DEVICE static int tile_of(int gate) { return kUnits == 16 ? gate : gate / 2; }
  FASTRNN_DEVICE static int value_of(int gate, int share) { return kUnits == 16 ? share : share + gate % 2 * 2; }
};

// How a launch divides units and samples among its blocks.
struct GridArguments {
  int unit_blocks;
  int columns;         // of a block
  int64_t slots;       // of the exchange buffer
  uint32_t* exchange;  // [column blocks][slots][column tiles][words]
};

// The units and columns of one block, and its part of the exchange buffer.
template <int kUnits>
struct BlockPlace {
  int first_unit, first_column;
  int column_tiles;
  int tile_words, slot_words;  // in the exchange buffer: of a column tile, of a step
  uint32_t* exchange;          // [slots][slot_words], shared by the blocks of these columns

  FASTRNN_DEVICE BlockPlace(const GridArguments& grid, int64_t depth) {
    first_unit = static_cast<int>(blockIdx.x) % grid.unit_blocks * kUnits;
    const int column_block = static_cast<int>(blockIdx.x) / grid.unit_blocks;
    column_tiles = grid.columns / kTileColumns;
    first_column = column_block * grid.columns;
    tile_words = static_cast<int>(depth) * kTileColumns;
    slot_words = tile_words * column_tiles;
    exchange = grid.exchange + grid.slots * column_block * slot_words;
  }
  FASTRNN_DEVICE uint32_t* slot(int index) const { return exchange + index * slot_words; }
};

template <class Cell, class S, Precision kPrecision, int kUnits>
__global__ void __launch_bounds__(kThreads, 1)
    grid_forward(const __grid_constant__ ForwardChunk<S> chunk, const __grid_constant__ GridArguments grid) {
#if __CUDA_ARCH__ >= 800
  using Rows = GateRows<kUnits, Cell::kGates>;
  using Product = GridProduct<kPrecision, Rows::kTiles>;
  constexpr int kItems = Ownership<kUnits>::kItems;
  extern __shared__ uint4 shared[];  // [2][column tiles][kPartFloats]
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  const int groups = grid.unit_blocks * kUnits / kGroupUnits;
  const BlockPlace<kUnits> place(grid, depth_words<kPrecision>(groups));
  const Product product(groups, reinterpret_cast<float*>(shared), [&](int tile, int row, int k) -> float {
    const int unit = place.first_unit + Rows::unit(row);
    const int gate = Rows::gate(tile, row);
    return gate < Cell::kGates && unit < H && k < H ? load<S>(scan.weights.hh(gate * H + unit, k)) : 0.f;
  });

  const Ownership<kUnits> owned;
  int unit = place.first_unit + owned.unit;
  const auto sample = [&](int item) { return place.first_column + owned.tile(item) * kTileColumns + owned.column; };
  const Bias<Cell, S> bias(scan, unit);
  ForwardInputs<Cell, S> inputs[kItems];
  UnitState<S> state[kItems];

  const auto send = [&](int slot, int item) {
    uint32_t* words = place.slot(slot) + owned.tile(item) * place.tile_words;
    publish<kPrecision>(state[item].h, unit % kGroupUnits, [&](int word, uint32_t bits) {
      const int depth = unit / kGroupUnits * kGroupWords<kPrecision> + word;
      store_relaxed(words + Product::Tile::word_index(depth, owned.column), bits);
    });
  };

#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (owned.tile(item) >= place.column_tiles) break;
    state[item] = enter<Cell>(chunk, sample(item), unit);
    inputs[item].fetch(chunk, chunk.first, sample(item), unit);
    send(0, item);
  }
  const int steps = static_cast<int>(chunk.steps);
  for (int step = 0; step < steps; ++step) {
    keep_apart(unit);
    product.run(place.slot(step), place.tile_words, place.column_tiles, step % 2);
    __syncthreads();
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (owned.tile(item) >= place.column_tiles) break;
      float gh[Cell::kGates];
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        gh[gate] = product.sum(step % 2, place.column_tiles, owned.tile(item), Rows::tile_of(gate),
                               Rows::value_of(gate, owned.share));
      advance(chunk, chunk.first + step, sample(item), unit, inputs[item], bias, gh, state[item]);
      if (step + 1 < steps) send(step + 1, item);
      inputs[item].fetch(chunk, chunk.first + step + 1, sample(item), unit);
    }
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (owned.tile(item) >= place.column_tiles) break;
    leave<Cell>(chunk, sample(item), unit, state[item]);
  }
#endif
}

// A block owns the columns of W_hh of 16 units, so it sums the gradient of their h over all gates locally, without
// atomics. Blocks exchange d_gh.
template <class Cell, class S, Precision kPrecision>
__global__ void __launch_bounds__(kThreads, 1)
    grid_backward(const __grid_constant__ BackwardChunk<S> chunk, const __grid_constant__ GridArguments grid) {
#if __CUDA_ARCH__ >= 800
  constexpr int kUnits = 16;
  using Product = GridProduct<kPrecision, 1>;
  constexpr int kItems = Ownership<kUnits>::kItems;
  extern __shared__ uint4 shared[];  // [2][column tiles][kPartFloats]
  const ScanParams<S>& scan = chunk.scan;
  const int64_t H = scan.hidden_size;
  const int groups = grid.unit_blocks;  // of one gate
  const BlockPlace<kUnits> place(grid, depth_words<kPrecision>(groups * Cell::kGates));
  const int padded = groups * kGroupUnits;
  const Product product(groups * Cell::kGates, reinterpret_cast<float*>(shared), [&](int, int row, int k) -> float {
    const int gate = k / padded, from = k % padded, to = place.first_unit + row;
    return gate < Cell::kGates && from < H && to < H ? load<S>(scan.weights.hh(gate * H + from, to)) : 0.f;
  });

  const Ownership<kUnits> owned;
  int unit = place.first_unit + owned.unit;
  const auto sample = [&](int item) { return place.first_column + owned.tile(item) * kTileColumns + owned.column; };
  BackwardInputs<Cell, S> inputs[kItems];
  UnitState<S> d_state[kItems];
  uint32_t ran = 0;  // bit i: the sample of item i ran this step
  const int steps = static_cast<int>(chunk.steps);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (owned.tile(item) >= place.column_tiles) break;
    d_state[item] = enter<Cell>(chunk, sample(item), unit);
    inputs[item].fetch(chunk, chunk.first + steps - 1, sample(item), unit);
  }
  for (int step = 0; step < steps; ++step) {
    keep_apart(unit);
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (owned.tile(item) >= place.column_tiles) break;
      float d_gh[Cell::kGates];
      retreat(chunk, chunk.first + steps - 1 - step, sample(item), unit, inputs[item], d_state[item], d_gh);
      ran = inputs[item].runs ? ran | 1u << item : ran & ~(1u << item);
      uint32_t* words = place.slot(step) + owned.tile(item) * place.tile_words;
#pragma unroll
      for (int gate = 0; gate < Cell::kGates; ++gate)
        publish<kPrecision>(d_gh[gate], owned.unit, [&](int word, uint32_t bits) {
          const int group = gate * groups + place.first_unit / kGroupUnits;
          const int depth = group * kGroupWords<kPrecision> + word;
          store_relaxed(words + Product::Tile::word_index(depth, owned.column), bits);
        });
      inputs[item].fetch(chunk, chunk.first + steps - step - 2, sample(item), unit);
    }
    product.run(place.slot(step), place.tile_words, place.column_tiles, step % 2);
    __syncthreads();
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      if (owned.tile(item) >= place.column_tiles) break;
      const float through_gh = product.sum(step % 2, place.column_tiles, owned.tile(item), 0, owned.share);
      if (ran >> item & 1) d_state[item].h += through_gh;  // skips idle samples: 0 * NaN is NaN
    }
  }
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (owned.tile(item) >= place.column_tiles) break;
    leave<Cell>(chunk, sample(item), unit, d_state[item]);
  }
#endif
}

}  // namespace fastrnn::cuda
