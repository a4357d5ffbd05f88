// Matrix products for everything: input projection, recurrence, and all gradients go through one micro-kernel.
//
// Weights are packed into panels of a few vectors of hidden units, the gates of the same units side by side, so that
// whoever takes the product of a panel holds every gate of its units. Every element is summed over k in one order,
// whatever the shape of the tile it falls in: a sample's bits do not depend on the batch around it.
#pragma once

namespace fastrnn::FASTRNN_ISA {

constexpr int kMaxVecs = 4;   // vectors of a panel
constexpr int kMaxRows = 12;  // rows of a tile

// Accumulators fill the registers, leaving room for a panel's vectors and a broadcast.
constexpr int tile_rows(int vecs) { return std::min(kMaxRows, (kRegisters - (kRegisters == 32 ? 5 : 4)) / vecs); }

template <class A>
constexpr int64_t round_up_to_vec(int64_t n) {
  return (n + Vec<A>::kWidth - 1) / Vec<A>::kWidth * Vec<A>::kWidth;
}

// out[r][:] = init[:] + sum over k of a[r][k] * b[k][:], for a tile of rows and vecs.
template <class A>
struct Tile {
  int64_t depth;  // number of k
  const A* a;     // element (r, k) at a[r * a_row + k * a_depth]
  int64_t a_row;
  int64_t a_depth;
  const A* b;  // row k at b[k * b_depth], vecs wide
  int64_t b_depth;
  const A* init;  // [vecs], null: 0
  A* out;         // row r at out[r * out_row]
  int64_t out_row;
};

// Sums run over this many k from zero and are then added up, for the error of one long chain grows with its length.
constexpr int64_t kSumDepth = 128;

template <class A, int kRows, int kVecs>
[[gnu::noinline]] void micro_kernel(const Tile<A>& tile) {
  using V = Vec<A>;
  V acc[kRows][kVecs];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = tile.init ? V::load(tile.init + v * V::kWidth) : V(A(0));
  const A* a = tile.a;
  const A* b = tile.b;
  const int64_t a_row = tile.a_row;
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + kSumDepth, tile.depth);
    for (int64_t k = begin; k < end; ++k, a += tile.a_depth, b += tile.b_depth) {
      V panel[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) panel[v] = V::load(b + v * V::kWidth);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const V x(a[r * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r][v] = mul_add(x, panel[v], acc[r][v]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        A* out = tile.out + r * tile.out_row + v * V::kWidth;
        (begin == 0 ? acc[r][v] : V::load(out) + acc[r][v]).store(out);
        acc[r][v] = V(A(0));
      }
    begin = end;
  } while (begin < tile.depth);
}

// rows <= tile_rows(vecs)
template <class A>
inline void run_tile(int64_t rows, int64_t vecs, const Tile<A>& tile) {
  using Kernel = void (*)(const Tile<A>&);
  static constexpr auto kTable = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return std::array<Kernel, sizeof...(kIndex)>{
        micro_kernel<A, std::min(kIndex % kMaxRows + 1, tile_rows(kIndex / kMaxRows + 1)), kIndex / kMaxRows + 1>...};
  }(std::make_integer_sequence<int, kMaxVecs * kMaxRows>{});
  kTable[(vecs - 1) * kMaxRows + rows - 1](tile);
}

// A weight matrix [kGates * units, depth] in panels; a panel is [depth][kGates][unit_vecs] vectors.
template <class A, int kGates>
class PackedWeights {
 public:
  static constexpr int kUnitVecs = std::max(1, kMaxVecs / kGates);  // of a full panel; the last may have fewer
  static constexpr int kUnits = kUnitVecs * Vec<A>::kWidth;

  PackedWeights(int64_t units, int64_t depth) : units_(units), depth_(depth), data_(depth * width()) {}

  int64_t units() const { return units_; }
  int64_t depth() const { return depth_; }
  int64_t width() const { return kGates * round_up_to_vec<A>(units_); }  // of a row of products, in panel order
  int64_t panels() const { return (units_ + kUnits - 1) / kUnits; }
  int64_t unit_vecs(int64_t panel) const {
    return std::min<int64_t>(kUnitVecs, round_up_to_vec<A>(units_ - panel * kUnits) / Vec<A>::kWidth);
  }
  static int64_t offset(int64_t panel) { return panel * kGates * kUnits; }  // in a row of products
  const A* panel(int64_t panel) const { return data_.get() + offset(panel) * depth_; }

  template <class S>
  void pack(int64_t panel, Matrix<const S> weight) {
    A* out = data_.get() + offset(panel) * depth_;
    const int64_t columns = kGates * unit_vecs(panel) * Vec<A>::kWidth;
    for_units(panel, [&](int64_t row, int64_t column) {
      for (int64_t k = 0; k < depth_; ++k) out[k * columns + column] = row < 0 ? A(0) : Storage<S>::to(weight(row, k));
    });
  }

  // A bias [kGates * units] in panel order, 0 where it is null or no unit is.
  template <class S>
  Buffer<A> pack_bias(Vector<const S> bias) const {
    Buffer<A> out(width());
    for (int64_t p = 0; p < panels(); ++p)
      for_units(p, [&](int64_t row, int64_t column) {
        out[offset(p) + column] = row < 0 || !bias ? A(0) : Storage<S>::to(bias[row]);
      });
    return out;
  }

 private:
  // f(row of the weight, or -1 past the last unit; column of the panel)
  template <class F>
  void for_units(int64_t panel, F&& f) const {
    const int64_t columns = unit_vecs(panel) * Vec<A>::kWidth;
    for (int64_t g = 0; g < kGates; ++g)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t unit = panel * kUnits + j;
        f(unit < units_ ? g * units_ + unit : -1, g * columns + j);
      }
  }

  int64_t units_;
  int64_t depth_;
  Buffer<A> data_;
};

// out[r] = init + a[r] W^T for `rows` rows of a, in panel order. init: [width] or null.
template <class A, int kGates>
void multiply(int64_t rows, const A* a, int64_t a_row, const PackedWeights<A, kGates>& w, const A* init, A* out,
              int64_t out_row) {
  for (int64_t p = 0; p < w.panels(); ++p) {
    const int64_t vecs = kGates * w.unit_vecs(p);
    const int64_t tile = tile_rows(static_cast<int>(vecs));
    for (int64_t r = 0; r < rows; r += tile)
      run_tile<A>(std::min(tile, rows - r), vecs,
                  {.depth = w.depth(),
                   .a = a + r * a_row,
                   .a_row = a_row,
                   .a_depth = 1,
                   .b = w.panel(p),
                   .b_depth = vecs * Vec<A>::kWidth,
                   .init = init ? init + w.offset(p) : nullptr,
                   .out = out + r * out_row + w.offset(p),
                   .out_row = out_row});
  }
}

// The same, but epilogue(first row, rows, panel, products) takes each tile while it is in L1;
// products are [rows][kGates][unit_vecs] vectors.
template <class A, int kGates, class Epilogue>
void multiply_fused(int64_t rows, const A* a, int64_t a_row, const PackedWeights<A, kGates>& w, const A* init,
                    Epilogue&& epilogue) {
  alignas(64) A products[kMaxRows * kMaxVecs * Vec<A>::kWidth];
  for (int64_t p = 0; p < w.panels(); ++p) {
    const int64_t vecs = kGates * w.unit_vecs(p);
    const int64_t width = vecs * Vec<A>::kWidth;
    const int64_t tile = tile_rows(static_cast<int>(vecs));
    for (int64_t r = 0; r < rows; r += tile) {
      const int64_t count = std::min(tile, rows - r);
      run_tile<A>(count, vecs,
                  {.depth = w.depth(),
                   .a = a + r * a_row,
                   .a_row = a_row,
                   .a_depth = 1,
                   .b = w.panel(p),
                   .b_depth = width,
                   .init = init ? init + w.offset(p) : nullptr,
                   .out = products,
                   .out_row = width});
      epilogue(r, count, p, static_cast<const A*>(products));
    }
  }
}

// out[i][:] += sum over the rows m of left[m][i] * right[m][:], for i in [begin, end): a weight gradient.
template <class A>
void accumulate_outer(int64_t begin, int64_t end, int64_t rows, const A* left, int64_t left_row, const A* right,
                      int64_t right_row, int64_t columns, A* out, int64_t out_row) {
  constexpr int kWidth = Vec<A>::kWidth;
  constexpr int kTile = tile_rows(kMaxVecs);
  Buffer<A> packed(rows * kTile);  // left[:, i : i + kTile], contiguous over i
  alignas(64) A sums[kMaxRows * kMaxVecs * kWidth];
  const int64_t vecs = round_up_to_vec<A>(columns) / kWidth;
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - i);
    for (int64_t m = 0; m < rows; ++m) std::copy_n(left + m * left_row + i, count, packed.get() + m * kTile);
    for (int64_t v = 0; v < vecs; v += kMaxVecs) {
      const int64_t width = std::min<int64_t>(kMaxVecs, vecs - v) * kWidth;
      run_tile<A>(count, width / kWidth,
                  {.depth = rows,
                   .a = packed.get(),
                   .a_row = 1,
                   .a_depth = kTile,
                   .b = right + v * kWidth,
                   .b_depth = right_row,
                   .init = nullptr,
                   .out = sums,
                   .out_row = width});
      for (int64_t r = 0; r < count; ++r)
        for (int64_t j = 0; j < width; j += kWidth) {
          A* target = out + (i + r) * out_row + v * kWidth + j;
          (Vec<A>::load(target) + Vec<A>::load(sums + r * width + j)).store(target);
        }
    }
  }
}

// out[i] += sum over the rows m of left[m][i], for i in [begin, end): a bias gradient. Kahan's summation: of all
// gradients this one adds the most terms of one sign.
template <class A>
void accumulate_rows(int64_t begin, int64_t end, int64_t rows, const A* left, int64_t left_row, A* out) {
  for (int64_t i = begin; i < end; i += Vec<A>::kWidth) {
    Vec<A> sum(A(0)), lost(A(0));
    for (int64_t m = 0; m < rows; ++m) {
      const Vec<A> term = load_first(left + m * left_row + i, end - i) - lost;
      const Vec<A> next = sum + term;
      lost = (next - sum) - term;
      sum = next;
    }
    store_first(load_first(out + i, end - i) + sum, out + i, end - i);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
