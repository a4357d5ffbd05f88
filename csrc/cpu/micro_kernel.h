// The register micro-kernel under every matrix product, and the types it multiplies.
//
// Where a chip multiplies pairs of bfloat16 (FASTRNN_PAIRS), operands stay in that type: two consecutive k lie side by
// side as one word, and the layouts of panels and rows are those of words. Everywhere else they have the type of sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/isa_scans.h"
#include "cpu/vec.h"
#include "dtypes.h"

namespace fastrnn::FASTRNN_ISA {

// Products of a storage type read operands of this type.
template <class S>
struct OperandOf {
  using Type = Accumulate<S>;
};
#if defined(FASTRNN_PAIRS)
template <>
struct OperandOf<BFloat16> {
  using Type = BFloat16;
};
template <>
struct OperandOf<RoundedFloat> {
  using Type = BFloat16;
};
#endif
template <class S>
using Operand = typename OperandOf<S>::Type;

template <class E>
constexpr bool kPaired = !std::is_same_v<E, Accumulate<E>>;

template <class E>
constexpr int kFactorDepth = kPaired<E> ? 2 : 1;  // a product multiplies so many k at once, which lie side by side

// Depths are multiples of this, padded with zeros: a vector of pairs, and the depth of a matrix register.
template <class E>
constexpr int64_t kDepthStep = kPaired<E> ? kVectorBytes / sizeof(E) : 1;

template <class E>
constexpr int64_t padded_depth(int64_t depth) {
  return (depth + kDepthStep<E> - 1) / kDepthStep<E> * kDepthStep<E>;
}

constexpr int kMaxVecs = 4;   // vectors of a panel
constexpr int kMaxRows = 16;  // rows of a tile outside matrix registers

#if defined(FASTRNN_ISA_NEON)
template <class E>
constexpr bool kInBlocks = kPaired<E>;  // pairs of rows are multiplied with pairs of columns, four k at once
#else
template <class E>
constexpr bool kInBlocks = false;
#endif

// A vector of duals is two registers. The columns of blocks are zipped once for all rows of a tile, which has more rows
// if it is narrow.
template <class E>
constexpr int kTileVecs = kDual<E> || kInBlocks<E> ? kMaxVecs / 2 : kMaxVecs;

template <class E>
constexpr int tile_rows(int vecs) {
  if (kInBlocks<E>) return std::min(12, kSumRegisters / vecs / 2 * 2);
  if (kDual<E>) return std::min({6, kSumRegisters / (2 * vecs), (kRegisters - 2 * vecs - 2) / (2 * vecs)});
  return std::min(12, kSumRegisters / vecs);
}

#if defined(FASTRNN_ISA_AMX)
template <class E>
constexpr bool kInMatrices = kPaired<E>;  // products run on matrix registers
#else
template <class E>
constexpr bool kInMatrices = false;
#endif

constexpr int kMatrixRows = 16;  // rows of a block, which is all that a matrix register has

template <class A>
constexpr int64_t round_up_to_vec(int64_t n) {
  return (n + Vec<A>::kWidth - 1) / Vec<A>::kWidth * Vec<A>::kWidth;
}

template <class E>
constexpr int64_t kLine = cpu::kCacheLine / sizeof(E);

// Rows of a buffer hold whole vectors and lie an odd number of cache lines apart, so that a column of rows spreads over
// all sets of a cache and no two threads write to one line.
template <class E>
constexpr int64_t row_length(int64_t columns) {
  return ((round_up_to_vec<Accumulate<E>>(columns) + kLine<E> - 1) / kLine<E> | 1) * kLine<E>;
}

// Sums run over this many k from zero and are then added up, for the error of one long chain grows with its length.
// A slice of a panel so deep stays in the first-level cache.
template <class E>
constexpr int64_t kSumDepth = kPaired<E> ? 256
                              : kDual<E> ? 64
                                         : 128;

// A tile of rows and vecs computes out[r][:] (+)= init[:] + sum over k of a[r][k] * b[k][:].
template <class E>
struct Tile {
  using A = Accumulate<E>;
  int64_t depth;  // number of k
  const E* a;     // element (r, k) at a[r * a_row + k * a_depth]; a_depth is 1 for pairs
  int64_t a_row;
  int64_t a_depth;
  const E* b;  // row k at b[k * b_depth], vecs wide; of pairs, rows k and k + 1
  int64_t b_depth;
  const E* ahead;  // for every k, or pair of them, a cache line is fetched, ahead_depth apart, unless rows are few
  int64_t ahead_depth;
  const A* init;  // [vecs]; null means 0
  A* out;         // row r at out[r * out_row]
  int64_t out_row;
  bool add;  // the tile is added to what out holds
};

// Makes the compiler load a vector once: one of few uses it loads again for each, as an operand of a multiply-add,
// though a core may begin no more loads of whole vectors in a cycle than multiply-adds.
template <class Raw>
FASTRNN_FN void keep_in_register([[maybe_unused]] Raw& raw) {
#if defined(FASTRNN_ISA_AVX512)
  asm("" : "+v"(raw));
#elif defined(FASTRNN_ISA_AVX2)
  asm("" : "+x"(raw));
#endif
}

// A vector of b, the same of a in every lane, and their products summed.
template <class E>
struct Factor {
  Vec<E> values;

  FASTRNN_FN void keep() {
    if constexpr (!kDual<E>) keep_in_register(values.raw);
  }

  FASTRNN_FN static Factor load(const E* p) { return {Vec<E>::load(p)}; }
  FASTRNN_FN static Factor broadcast(const E* p) { return {Vec<E>(*p)}; }
  FASTRNN_FN friend Vec<E> multiply_add(Factor a, Factor b, Vec<E> sum) { return mul_add(a.values, b.values, sum); }
};

#if defined(FASTRNN_PAIRS) && defined(FASTRNN_ISA_AVX512) && !defined(FASTRNN_ISA_AMX)
template <>
struct Factor<BFloat16> {
  __m512i values;

  FASTRNN_FN void keep() { keep_in_register(values); }
  FASTRNN_FN static Factor load(const BFloat16* p) { return {_mm512_loadu_si512(p)}; }
  FASTRNN_FN static Factor broadcast(const BFloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return {_mm512_set1_epi32(pair)};
  }
  FASTRNN_FN friend Vec<float> multiply_add(Factor a, Factor b, Vec<float> sum) {
#if defined(__clang__)  // version 16 crashes over the intrinsic
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.values), "v"(b.values));
    return sum;
#else
    return Vec<float>(_mm512_dpbf16_ps(sum.raw, (__m512bh)a.values, (__m512bh)b.values));
#endif
  }
};
#endif

// With so few rows a core is as busy with loads as with multiply-adds: to fetch a line ahead would cost more than it
// saves.
constexpr int kRowsThatLoad = 3;

template <class E, int kRows, int kVecs>
[[gnu::noinline]] void micro_kernel(const Tile<E>& tile) {
  using A = Accumulate<E>;
  using V = Vec<A>;
  using F = Factor<E>;
  constexpr int kStep = kFactorDepth<E>;
  constexpr bool kKeeps = kRows > 1 && (kRows + 1) * kVecs < kRegisters;
  V acc[kRows][kVecs];
  FASTRNN_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) acc[r][v] = tile.init ? V::load(tile.init + v * V::kWidth) : V(A(0));
  }
  const E* a = tile.a;
  const E* b = tile.b;
  const E* ahead = tile.ahead;
  const int64_t a_row = tile.a_row;
  for (int64_t k = 0; k < tile.depth; k += kStep) {
    if constexpr (kRows > kRowsThatLoad) __builtin_prefetch(ahead);
    F panel[kVecs];
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) {
      panel[v] = F::load(b + v * kStep * V::kWidth);
      if constexpr (kKeeps) panel[v].keep();
    }
    FASTRNN_UNROLL(12)
    for (int r = 0; r < kRows; ++r) {
      const F x = F::broadcast(a + r * a_row);
      FASTRNN_UNROLL(4)
      for (int v = 0; v < kVecs; ++v) acc[r][v] = multiply_add(x, panel[v], acc[r][v]);
    }
    a += kStep * tile.a_depth;
    b += kStep * tile.b_depth;
    ahead += tile.ahead_depth;
  }
  FASTRNN_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) {
      A* out = tile.out + r * tile.out_row + v * V::kWidth;
      (tile.add ? V::load(out) + acc[r][v] : acc[r][v]).store(out);
    }
  }
}

#if defined(FASTRNN_PAIRS) && defined(FASTRNN_ISA_NEON)
// Adds products of four k of two rows with those of two columns to (row 0, row 1) x (column 0, column 1).
FASTRNN_FN Vec<float> multiply_blocks(int16x8_t rows, int16x8_t columns, Vec<float> sums) {
  asm(FASTRNN_ARM_INSTRUCTION(0x6e40ec00) : "+w"(sums.raw) : "w"(rows), "w"(columns));  // BFMMLA
  return sums;
}

// These are the sums of two rows of a tile and a vector of columns: those of the vector's first half and of its second.
struct BlockSums {
  Vec<float> halves[2];

  FASTRNN_FN static BlockSums of_both(Vec<float> row) {
    const auto raw = (float64x2_t)row.raw;
    return {
        {Vec<float>((Vec<float>::Raw)vdupq_laneq_f64(raw, 0)), Vec<float>((Vec<float>::Raw)vdupq_laneq_f64(raw, 1))}};
  }
  FASTRNN_FN Vec<float> row(int r) const {
    const auto low = (float64x2_t)halves[0].raw, high = (float64x2_t)halves[1].raw;
    return Vec<float>((Vec<float>::Raw)(r == 0 ? vzip1q_f64(low, high) : vzip2q_f64(low, high)));
  }
};

template <int kRows, int kVecs>
[[gnu::noinline]] void block_kernel(const Tile<BFloat16>& tile) {
  using V = Vec<float>;
  constexpr int kBlocks = (kRows + 1) / 2, kWords = V::kWidth;
  const auto row_of = [](int block, int r) FASTRNN_LAMBDA { return std::min(2 * block + r, kRows - 1); };
  BlockSums sums[kBlocks][kVecs];
  FASTRNN_UNROLL(6)
  for (int i = 0; i < kBlocks; ++i) {
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v)
      sums[i][v] = BlockSums::of_both(tile.init ? V::load(tile.init + v * kWords) : V(0.0f));
  }
  const BFloat16* b = tile.b;
  const BFloat16* ahead = tile.ahead;
  for (int64_t k = 0; k < tile.depth; k += 4) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + tile.ahead_depth);
    int16x8_t rows[kBlocks];
    FASTRNN_UNROLL(6)
    for (int i = 0; i < kBlocks; ++i) {
      int16x4_t fours[2];
      for (int r = 0; r < 2; ++r) std::memcpy(&fours[r], tile.a + row_of(i, r) * tile.a_row + k, sizeof fours[r]);
      rows[i] = vcombine_s16(fours[0], fours[1]);
    }
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) {
      const auto first = (int32x4_t)load_words(b + 2 * v * kWords).raw;  // k and k + 1 of each column
      const auto second = (int32x4_t)load_words(b + 2 * tile.b_depth + 2 * v * kWords).raw;
      const auto low = (int16x8_t)vzip1q_s32(first, second), high = (int16x8_t)vzip2q_s32(first, second);
      FASTRNN_UNROLL(6)
      for (int i = 0; i < kBlocks; ++i) {
        sums[i][v].halves[0] = multiply_blocks(rows[i], low, sums[i][v].halves[0]);
        sums[i][v].halves[1] = multiply_blocks(rows[i], high, sums[i][v].halves[1]);
      }
    }
    b += 4 * tile.b_depth;
    ahead += 2 * tile.ahead_depth;
  }
  FASTRNN_UNROLL(12)
  for (int r = 0; r < kRows; ++r) {
    FASTRNN_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) {
      float* const out = tile.out + r * tile.out_row + v * kWords;
      const V sum = sums[r / 2][v].row(r % 2);
      (tile.add ? V::load(out) + sum : sum).store(out);
    }
  }
}
#endif

#if defined(FASTRNN_ISA_AMX)
// This thread's matrix registers: 0 to 3 hold sums, 4 and 5 hold rows of a, 6 and 7 hold vectors of b.
class MatrixRegisters {
 public:
  MatrixRegisters() = default;
  MatrixRegisters(const MatrixRegisters&) = delete;
  ~MatrixRegisters() { release(); }

  // Registers 0, 1 and 4 get `first` rows; 2, 3 and 5 get `second`, which is 0 where the tile does not use them.
  static void set_rows(int first, int second) {
    if (first == current().first && (second == current().second || second == 0)) return;
    if (second == 0) second = first;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16];
    } config{.rows = {to_byte(first), to_byte(first), to_byte(second), to_byte(second),  // sums
                      to_byte(first), to_byte(second), kMatrixRows, kMatrixRows}};
    _tile_loadconfig(&config);
    current() = {first, second};
  }

 private:
  struct Rows {
    int first, second;
  };
  static Rows& current() {
    static thread_local Rows rows{0, 0};
    return rows;
  }
  static constexpr uint8_t to_byte(int rows) { return static_cast<uint8_t>(rows); }
  static void release() {
    if (current().first == 0) return;
    _tile_release();
    current() = {0, 0};
  }
};

// The compiler does not know what the instructions read and write.
FASTRNN_FN void memory_fence() { asm volatile("" ::: "memory"); }

// A tile is one block of rows with up to 4 vectors, which loads 5 registers for 4 products, or two blocks with up to 2
// vectors, which loads 4 for 4. Registers 2 and 3 sum the third and fourth vector, or the second block. Nothing is
// fetched ahead.
template <int kBlocks, int kVecs>
[[gnu::noinline]] void matrix_kernel(const Tile<BFloat16>& tile, int rows) {
  static_assert(kBlocks * kVecs <= 4);
  constexpr int kWidth = Vec<float>::kWidth;
  constexpr bool kTwo = kBlocks == 2;
  constexpr bool kSums[] = {true, kVecs > 1, kTwo || kVecs > 2, kTwo ? kVecs > 1 : kVecs > 3};
  if constexpr (kTwo)
    MatrixRegisters::set_rows(kMatrixRows, rows - kMatrixRows);
  else
    MatrixRegisters::set_rows(rows, kVecs > 2 ? rows : 0);
  memory_fence();
  const int64_t out_stride = tile.out_row * sizeof(float);
  const int64_t out_at_2 = kTwo ? kMatrixRows * tile.out_row : 2 * kWidth;
  const float* from = tile.add ? tile.out : tile.init;
  const int64_t from_stride = tile.add ? out_stride : 0;  // every row starts as init
  const int64_t from_at_2 = kTwo && !tile.add ? 0 : out_at_2;
  if (from) {
    _tile_loadd(0, from, from_stride);
    if constexpr (kSums[1]) _tile_loadd(1, from + kWidth, from_stride);
    if constexpr (kSums[2]) _tile_loadd(2, from + from_at_2, from_stride);
    if constexpr (kSums[3]) _tile_loadd(3, from + from_at_2 + kWidth, from_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t a_stride = tile.a_row * sizeof(BFloat16);
  const int64_t b_stride = 2 * tile.b_depth * sizeof(BFloat16);
  const BFloat16* b = tile.b;
  for (int64_t k = 0; k < tile.depth; k += kDepthStep<BFloat16>) {
    _tile_loadd(4, tile.a + k, a_stride);
    _tile_loadd(6, b, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kVecs > 1) {
      _tile_loadd(7, b + 2 * kWidth, b_stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwo) {
      _tile_loadd(5, tile.a + kMatrixRows * tile.a_row + k, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kVecs > 1) _tile_dpbf16ps(3, 5, 7);
    }
    if constexpr (kVecs > 2) {
      _tile_loadd(6, b + 4 * kWidth, b_stride);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (kVecs > 3) {
      _tile_loadd(7, b + 6 * kWidth, b_stride);
      _tile_dpbf16ps(3, 4, 7);
    }
    b += kDepthStep<BFloat16> * tile.b_depth;
  }
  _tile_stored(0, tile.out, out_stride);
  if constexpr (kSums[1]) _tile_stored(1, tile.out + kWidth, out_stride);
  if constexpr (kSums[2]) _tile_stored(2, tile.out + out_at_2, out_stride);
  if constexpr (kSums[3]) _tile_stored(3, tile.out + out_at_2 + kWidth, out_stride);
  memory_fence();
}
#else
struct MatrixRegisters {};
#endif

template <class E, int kRows, int kVecs>
constexpr auto tile_kernel() {
#if defined(FASTRNN_PAIRS) && defined(FASTRNN_ISA_NEON)
  if constexpr (kInBlocks<E>)
    return block_kernel<kRows, kVecs>;
  else
#endif
    return micro_kernel<E, kRows, kVecs>;
}

// A tile has at most tile_rows(vecs) rows and kTileVecs vectors; in matrix registers, as for_tiles() cuts them.
template <class E>
inline void run_tile(int64_t rows, int64_t vecs, const Tile<E>& tile) {
#if defined(FASTRNN_ISA_AMX)
  if constexpr (kInMatrices<E>) {
    static constexpr std::array kOneBlock{matrix_kernel<1, 1>, matrix_kernel<1, 2>, matrix_kernel<1, 3>,
                                          matrix_kernel<1, 4>};
    static constexpr std::array kTwoBlocks{matrix_kernel<2, 1>, matrix_kernel<2, 2>};
    return (rows > kMatrixRows ? kTwoBlocks[vecs - 1] : kOneBlock[vecs - 1])(tile, static_cast<int>(rows));
  } else
#endif
  {
    using Kernel = void (*)(const Tile<E>&);
    static constexpr auto kTable = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
      return std::array<Kernel, sizeof...(kIndex)>{
          tile_kernel<E, std::min(kIndex % kMaxRows + 1, tile_rows<E>(kIndex / kMaxRows + 1)),
                      kIndex / kMaxRows + 1>()...};
    }(std::make_integer_sequence<int, kTileVecs<E> * kMaxRows>{});
    kTable[(vecs - 1) * kMaxRows + rows - 1](tile);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
