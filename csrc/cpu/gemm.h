// Matrix products for everything: input projection, recurrence, and all gradients go through one micro-kernel.
//
// Weights are packed into panels of a few vectors of hidden units, the gates of the same units side by side, so that
// whoever takes the product of a panel holds every gate of its units. A panel is walked in slices that stay in the
// first-level cache for all rows, while the tiles of a slice fetch the next one: weights may then stream from far
// away. Every element is summed over k in one order, whatever the shape of the tile it falls in: a sample's bits do
// not depend on the batch around it.
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

template <class A>
constexpr int64_t kLine = cpu::kCacheLine / sizeof(A);

// The distance between rows of a buffer: an odd number of cache lines, so that a column of rows spreads over all sets
// of a cache, and no two threads write to one line.
template <class A>
constexpr int64_t row_length(int64_t columns) {
  return ((columns + kLine<A> - 1) / kLine<A> | 1) * kLine<A>;
}

// Sums run over this many k from zero and are then added up, for the error of one long chain grows with its length.
constexpr int64_t kSumDepth = 128;

// out[r][:] (+)= init[:] + sum over k of a[r][k] * b[k][:], for a tile of rows and vecs.
template <class A>
struct Tile {
  int64_t depth;  // number of k
  const A* a;     // element (r, k) at a[r * a_row + k * a_depth]
  int64_t a_row;
  int64_t a_depth;
  const A* b;  // row k at b[k * b_depth], vecs wide
  int64_t b_depth;
  const A* ahead;  // for every k, a cache line is fetched from ahead + k * ahead_depth
  int64_t ahead_depth;
  const A* init;  // [vecs], null: 0
  A* out;         // row r at out[r * out_row]
  int64_t out_row;
  bool add;  // to what is there
};

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
  const A* ahead = tile.ahead;
  const int64_t a_row = tile.a_row;
  for (int64_t k = 0; k < tile.depth; ++k) {
    __builtin_prefetch(ahead);
    V panel[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) panel[v] = V::load(b + v * V::kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const V x(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) acc[r][v] = mul_add(x, panel[v], acc[r][v]);
    }
    a += tile.a_depth;
    b += tile.b_depth;
    ahead += tile.ahead_depth;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      A* out = tile.out + r * tile.out_row + v * V::kWidth;
      (tile.add ? V::load(out) + acc[r][v] : acc[r][v]).store(out);
    }
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

// f(first row, rows) for tiles of nearly equal size.
template <class F>
FASTRNN_FN void for_tiles(int64_t rows, int64_t vecs, F&& f) {
  const int64_t most = tile_rows(static_cast<int>(vecs));
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t i = 0, first = 0; i < tiles; ++i) {
    const int64_t count = (rows - first + tiles - i - 1) / (tiles - i);
    f(first, count);
    first += count;
  }
}

// A weight matrix [kGates * units, depth] in panels; a panel is [depth][kGates][unit_vecs] vectors.
template <class A, int kGates>
class PackedWeights {
 public:
  static constexpr int kUnitVecs = std::max(1, kMaxVecs / kGates);  // of a panel, at most

  PackedWeights(int64_t units, int64_t depth) : units_(units), depth_(depth), data_(depth * width()) {}

  int64_t units() const { return units_; }
  int64_t depth() const { return depth_; }
  int64_t width() const { return kGates * round_up_to_vec<A>(units_); }  // of a row of products, in panel order
  int64_t bytes() const { return depth_ * width() * sizeof(A); }
  int64_t panels() const { return (vecs() + kUnitVecs - 1) / kUnitVecs; }
  int64_t unit(int64_t panel) const { return first_vec(panel) * Vec<A>::kWidth; }  // the panel's first
  int64_t unit_vecs(int64_t panel) const { return first_vec(panel + 1) - first_vec(panel); }
  int64_t offset(int64_t panel) const { return kGates * unit(panel); }  // in a row of products
  const A* panel(int64_t panel) const { return data_.get() + offset(panel) * depth_; }

  template <class S>
  void pack(Range panels, Matrix<const S> weight) {
    for (int64_t p = panels.begin; p < panels.end; ++p)
      for_vecs(p, [&](int64_t row, int64_t units, int64_t column) {
        pack_vec(weight, row, units, data_.get() + offset(p) * depth_ + column, kGates * unit_vecs(p) * Vec<A>::kWidth);
      });
  }

  // A bias [kGates * units] in panel order, 0 where it is null or no unit is.
  template <class S>
  void pack_bias(Vector<const S> bias, A* out) const {
    std::fill_n(out, width(), A(0));
    if (!bias) return;
    for (int64_t p = 0; p < panels(); ++p)
      for_vecs(p, [&](int64_t row, int64_t units, int64_t column) {
        gather(bias.data + row * bias.stride, bias.stride, out + offset(p) + column, units);
      });
  }

 private:
  int64_t vecs() const { return round_up_to_vec<A>(units_) / Vec<A>::kWidth; }
  int64_t first_vec(int64_t panel) const { return kUnitVecs == 1 ? panel : vecs() * panel / panels(); }

  // f(row of the weight, units from there on, column of the panel) for every vector of a panel's row
  template <class F>
  void for_vecs(int64_t panel, F&& f) const {
    for (int64_t g = 0; g < kGates; ++g)
      for (int64_t v = 0; v < unit_vecs(panel); ++v) {
        const int64_t first = unit(panel) + v * Vec<A>::kWidth;
        f(g * units_ + first, std::min<int64_t>(Vec<A>::kWidth, units_ - first),
          (g * unit_vecs(panel) + v) * Vec<A>::kWidth);
      }
  }

  // Rows [row, row + units) of the weight side by side, depth_ of them.
  template <class S>
  void pack_vec(Matrix<const S> weight, int64_t row, int64_t units, A* out, int64_t out_row) const {
    constexpr int kWidth = Vec<A>::kWidth;
    if (weight.row_stride == 1) {
      for (int64_t k = 0; k < depth_; ++k) load_as_vec(&weight(row, k), units).store(out + k * out_row);
      return;
    }
    Vec<A> block[kWidth];
    for (int64_t k = 0; k < depth_; k += kWidth) {
      const int64_t columns = std::min<int64_t>(kWidth, depth_ - k);
      for (int j = 0; j < kWidth; ++j)
        block[j] = j < units ? load_strided(&weight(row + j, k), weight.col_stride, columns) : Vec<A>(A(0));
      transpose(block);
      for (int64_t j = 0; j < columns; ++j) block[j].store(out + (k + j) * out_row);
    }
  }

  int64_t units_;
  int64_t depth_;
  Buffer<A> data_;
};

// out[r] = init + a[r] W^T for `rows` rows of a and one panel. ahead: the panel to fetch meanwhile.
template <class A, int kGates>
void multiply_panel(int64_t rows, const A* a, int64_t a_row, const PackedWeights<A, kGates>& w, int64_t panel,
                    const A* ahead, const A* init, A* out, int64_t out_row) {
  const int64_t vecs = kGates * w.unit_vecs(panel);
  const int64_t columns = vecs * Vec<A>::kWidth;
  int64_t k = 0;
  do {  // once for a depth of 0, too: the product is then init
    const int64_t depth = std::min(kSumDepth, w.depth() - k);
    const A* slice = w.panel(panel) + k * columns;
    const A* next = k + depth < w.depth() ? slice + depth * columns : ahead;
    const A* next_end = next + depth * columns;
    for_tiles(rows, vecs, [&](int64_t first, int64_t count) {
      run_tile<A>(count, vecs,
                  {.depth = depth,
                   .a = a + first * a_row + k,
                   .a_row = a_row,
                   .a_depth = 1,
                   .b = slice,
                   .b_depth = columns,
                   .ahead = next < next_end ? next : slice,
                   .ahead_depth = kLine<A>,
                   .init = init && k == 0 ? init : nullptr,
                   .out = out + first * out_row,
                   .out_row = out_row,
                   .add = k > 0});
      next += depth * kLine<A>;  // each tile fetches a part of the slice
    });
    k += depth;
  } while (k < w.depth());
}

// out[r] = init + a[r] W^T for `rows` rows of a and a range of panels. init: [width] or null; out in panel order.
template <class A, int kGates>
void multiply(int64_t rows, const A* a, int64_t a_row, const PackedWeights<A, kGates>& w, Range panels, const A* init,
              A* out, int64_t out_row) {
  for (int64_t p = panels.begin; p < panels.end; ++p)
    multiply_panel(rows, a, a_row, w, p, w.panel(p + 1 < panels.end ? p + 1 : panels.begin),
                   init ? init + w.offset(p) : nullptr, out + w.offset(p), out_row);
}

// The same, but epilogue(first row, rows, panel, products) takes each panel of some rows while it is in L1;
// products are [rows][kGates][unit_vecs] vectors.
template <class A, int kGates, class Epilogue>
void multiply_fused(int64_t rows, const A* a, int64_t a_row, const PackedWeights<A, kGates>& w, Range panels,
                    const A* init, Epilogue&& epilogue) {
  constexpr int64_t kRows = 48;  // their products, their part of a and a slice of the panel share L1
  alignas(64) A products[kRows * kMaxVecs * Vec<A>::kWidth];
  const int64_t blocks = (rows + kRows - 1) / kRows;
  for (int64_t block = 0; block < blocks; ++block) {
    const auto [first, last] = cpu::share(rows, block, blocks);
    for (int64_t p = panels.begin; p < panels.end; ++p) {
      multiply_panel(last - first, a + first * a_row, a_row, w, p, w.panel(p + 1 < panels.end ? p + 1 : panels.begin),
                     init ? init + w.offset(p) : nullptr, products, kGates * w.unit_vecs(p) * Vec<A>::kWidth);
      epilogue(first, last - first, p, static_cast<const A*>(products));
    }
  }
}

constexpr int64_t kOuterRows = 240;  // of a weight gradient whose operands share the second-level cache

// out[i][:] += sum over the rows m of left[m][i] * right[m][:], for i in a range: a weight gradient.
template <class A>
void accumulate_outer(Range range, int64_t rows, const A* left, int64_t left_row, const A* right, int64_t right_row,
                      int64_t columns, A* out, int64_t out_row) {
  constexpr int kWidth = Vec<A>::kWidth;
  const int64_t vecs = round_up_to_vec<A>(columns) / kWidth;
  alignas(64) A sums[kOuterRows * kMaxVecs * kWidth];
  for (int64_t begin = range.begin; begin < range.end; begin += kOuterRows) {
    const int64_t size = std::min(kOuterRows, range.end - begin);
    for (int64_t v = 0; v < vecs; v += kMaxVecs) {
      const int64_t width = std::min<int64_t>(kMaxVecs, vecs - v) * kWidth;
      for (int64_t m = 0; m < rows; m += kSumDepth) {
        const A* slice = right + m * right_row + v * kWidth;
        const A* next = m + kSumDepth < rows ? slice + kSumDepth * right_row : right + (v + kMaxVecs) * kWidth;
        const A* next_end = next + width;
        for_tiles(size, width / kWidth, [&](int64_t first, int64_t count) {
          run_tile<A>(count, width / kWidth,
                      {.depth = std::min(kSumDepth, rows - m),
                       .a = left + m * left_row + begin + first,
                       .a_row = 1,
                       .a_depth = left_row,
                       .b = slice,
                       .b_depth = right_row,
                       .ahead = next < next_end ? next : slice,
                       .ahead_depth = right_row,
                       .init = nullptr,
                       .out = sums + first * width,
                       .out_row = width,
                       .add = m > 0});
          next += kLine<A>;
          if (m + kSumDepth < rows) return;
          for (int64_t i = begin + first; i < begin + first + count; ++i)  // what the sums are added to
            for (int64_t j = 0; j < width; j += kLine<A>) __builtin_prefetch(out + i * out_row + v * kWidth + j, 1);
        });
      }
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < width; j += kWidth) {
          A* const target = out + (begin + i) * out_row + v * kWidth + j;
          (Vec<A>::load(target) + Vec<A>::load(sums + i * width + j)).store(target);
        }
    }
  }
}

// Kahan's summation.
template <class V>
struct CompensatedSum {
  V value, lost;

  FASTRNN_FN CompensatedSum() : value(0), lost(0) {}
  FASTRNN_FN void add(V x) {
    const V term = x - lost;
    const V next = value + term;
    lost = (next - value) - term;
    value = next;
  }
};

// out[i] += sum over the rows m of left[m][i], for i in a range: a bias gradient. Of all gradients this one adds the
// most terms of one sign.
template <class A>
void accumulate_rows(Range range, int64_t rows, const A* left, int64_t left_row, A* out) {
  using V = Vec<A>;
  constexpr int kVecs = 4;  // independent sums hide the latency of each
  for (int64_t i = range.begin; i < range.end; i += kVecs * V::kWidth) {
    CompensatedSum<V> sums[kVecs];
    const auto for_vecs = [&](auto&& f) {
      for (int v = 0; v < kVecs && i + v * V::kWidth < range.end; ++v)
        f(sums[v], i + v * V::kWidth, range.end - i - v * V::kWidth);
    };
    for (int64_t m = 0; m < rows; ++m)
      for_vecs([&](CompensatedSum<V>& sum, int64_t first, int64_t n) {
        sum.add(load_first(left + m * left_row + first, n));
      });
    for_vecs([&](CompensatedSum<V>& sum, int64_t first, int64_t n) {
      store_first(load_first(out + first, n) + sum.value, out + first, n);
    });
  }
}

}  // namespace fastrnn::FASTRNN_ISA
