// Weights in the order in which products read them: packed for a call, where they are read, or once for many calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/micro_kernel.h"
#include "cpu/vec.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// What an earlier call packed, in panels as below; null: nothing. Values of a shorter type than products read lie in
// words, those of consecutive depths side by side.
struct KeptWeights {
  const void* values = nullptr;
  const float* scales = nullptr;  // of int8, one for each column of the panels
  WeightType type = WeightType::kOperand;

  explicit operator bool() const { return values != nullptr; }
  const int32_t* words() const { return static_cast<const int32_t*>(values); }
};

// So many values of a shorter type are a word.
constexpr int64_t per_word(WeightType type) { return type == WeightType::kInt8 ? 4 : 2; }

// A weight matrix [gates * units, inputs] in panels; a panel is [depth][gates][unit_vecs] vectors. Packing ahead pays
// where a panel is read more than once: else a slice is packed where it is read, into the first-level cache. Panels of
// two matrices have the same units if both are told the gates of the wider one, and the same limit on their vectors.
// Where the last units fill no vector, their gates share vectors: an LSTM of 20 units takes 4 and 1 of them, not 4
// and 4.
template <class S>
class PackedWeights {
 public:
  using E = Operand<S>;
  using A = Accumulate<S>;
  using Slice = E[kSumDepth<E> * kMaxVecs * Vec<A>::kWidth];

  PackedWeights(int gates, int64_t units, int64_t inputs, Matrix<const S> weight, bool ahead = true,
                KeptWeights kept = {}, int panel_gates = 0, int64_t most_unit_vecs = kMaxVecs)
      : gates_(gates),
        panel_gates_(std::max(gates, panel_gates)),
        whole_unit_vecs_(std::max(1, kMaxVecs / std::max(1, panel_gates_))),
        most_unit_vecs_(std::min(most_unit_vecs, whole_unit_vecs_)),
        units_(units),
        inputs_(inputs),
        depth_(padded_depth<E>(inputs)),
        weight_(weight),
        ahead_(ahead || kept || (weight && gates > kMaxVecs)),  // no slice holds the panel of more gates
        kept_(kept),
        data_(ahead_ && !kept ? depth_ * width() : 0),
        values_(kept ? static_cast<const E*>(kept.values) : data_.get()) {}

  int gates() const { return gates_; }
  int64_t units() const { return units_; }
  int64_t depth() const { return depth_; }
  int64_t width() const { return gates_ * round_up_to_vec<A>(units_); }  // of a row of products, in panel order
  int64_t bytes() const { return bytes(kept_.type); }
  int64_t bytes(WeightType type) const {
    return type == WeightType::kOperand ? depth_ * width() * sizeof(E)
                                        : words(type, depth_) * width() * sizeof(int32_t);
  }
  int64_t vecs() const { return round_up_to_vec<A>(units_) / Vec<A>::kWidth; }  // of units
  int64_t whole_unit_vecs() const { return whole_unit_vecs_; }
  int64_t most_unit_vecs() const { return most_unit_vecs_; }
  int64_t panels() const { return most_unit_vecs_ == 1 ? vecs() : (vecs() + most_unit_vecs_ - 1) / most_unit_vecs_; }
  int64_t unit(int64_t panel) const { return first_vec(panel) * Vec<A>::kWidth; }  // the panel's first
  int64_t unit_vecs(int64_t panel) const { return first_vec(panel + 1) - first_vec(panel); }
  int64_t offset(int64_t panel) const { return gates_ * unit(panel); }  // in a row of products

  // Returns rows of a panel from depth k on: packed ahead, or now.
  const E* slice(int64_t panel, int64_t k, int64_t depth, Slice& scratch) const {
    if (is_short())
      widen(panel, k, depth, scratch);
    else if (ahead_)
      return values_ + at(panel, k);
    else
      pack(panel, {k, k + depth}, scratch);
    return scratch;
  }
  // Returns what to fetch meanwhile: the panel's rows after depth k, or those of the next one of `panels`.
  const E* after(int64_t panel, int64_t k, Range panels, const E* otherwise) const {
    if (!ahead_ || is_short()) return otherwise;
    if (k < depth_) return values_ + at(panel, k);
    return values_ + at(panel + 1 < panels.end ? panel + 1 : panels.begin, 0);
  }

  bool ahead() const { return ahead_; }
  // Tells whether the kept weights have a shorter type than products read.
  bool is_short() const { return std::is_same_v<S, float> && kept_.type != WeightType::kOperand; }
  const KeptWeights& kept() const { return kept_; }
  // Returns how far apart the products of a unit's gates lie: a vector for each of the panel's, unless gates of fewer
  // units take fewer vectors side by side. Matrices of one cell have the same distances.
  int64_t gate_distance(int64_t panel) const {
    const int64_t width = unit_vecs(panel) * Vec<A>::kWidth, units = units_ - unit(panel);
    const bool shares =
        width == Vec<A>::kWidth && units < width && round_up_to_vec<A>(panel_gates_ * units) < panel_gates_ * width;
    return shares ? units : width;
  }
  int64_t columns(int64_t panel) const { return round_up_to_vec<A>(gates_ * gate_distance(panel)); }
  // Returns where row k of a panel begins.
  int64_t at(int64_t panel, int64_t k) const { return offset(panel) * depth_ + k * columns(panel); }
  // The same among words, for a k at which a word begins.
  int64_t word_at(WeightType type, int64_t panel, int64_t k) const {
    return offset(panel) * words(type, depth_) + words(type, k) * columns(panel);
  }
  static int64_t words(WeightType type, int64_t depth) { return (depth + per_word(type) - 1) / per_word(type); }

  // Calls f(row of the weight, units from there on, column of the panel) for every vector of a panel's row.
  template <class F>
  void for_vecs(int64_t panel, F&& f) const {
    for (int64_t g = 0; g < gates_; ++g)
      for (int64_t v = 0; v < unit_vecs(panel); ++v) {
        const int64_t first = unit(panel) + v * Vec<A>::kWidth;
        f(g * units_ + first, std::min<int64_t>(Vec<A>::kWidth, units_ - first),
          g * gate_distance(panel) + v * Vec<A>::kWidth);
      }
  }

  // Blocks of `units` rows from `row` on and `columns` depths from k on, as a vector of units for each depth. Those
  // that fill their vectors and lie side by side are loaded without a branch, and stay in registers.
  using Block = Vec<A>[Vec<A>::kWidth];

  // A block touches more rows than the hardware follows. They are fetched so far ahead, to the second-level cache, as
  // rows of whole kilobytes share a few sets of the first.
  static constexpr int64_t kAheadOfBlock = 256 / sizeof(S);

  // Units lie side by side, as in the transposed weights that backward reads.
  bool has_columns() const { return weight_.row_stride == 1; }
  Vec<A> load_column(int64_t row, int64_t k, int64_t units) const { return load_as_vec(&weight_(row, k), units); }

  bool is_whole(int64_t units, int64_t columns) const {
    return weight_.col_stride == 1 && units == Vec<A>::kWidth && columns == Vec<A>::kWidth;
  }
  FASTRNN_FN void load_whole_block(int64_t row, int64_t k, Block& block) const {
    FASTRNN_UNROLL(16)
    for (int j = 0; j < Vec<A>::kWidth; ++j) {
      block[j] = load_as_vec(&weight_(row + j, k), Vec<A>::kWidth);
      __builtin_prefetch(&weight_(row + j, k) + kAheadOfBlock, 0, 2);
    }
    transpose(block);
  }
  void load_block(int64_t row, int64_t units, int64_t k, int64_t columns, Block& block) const {
    for (int j = 0; j < Vec<A>::kWidth; ++j)
      block[j] = j < units ? load_strided(&weight_(row + j, k), weight_.col_stride, columns) : Vec<A>(A(0));
    transpose(block);
  }

  void pack(Range panels) {
    for (int64_t p = panels.begin; ahead_ && !kept_ && p < panels.end; ++p)
      pack(p, {0, depth_}, data_.get() + at(p, 0));
  }

  // Packs a bias [gates * units] in panel order, with 0 where it is null or no unit is.
  void pack_bias(Vector<const S> bias, A* out) const {
    std::fill_n(out, width(), A(0));
    if (!bias) return;
    for (int64_t p = 0; p < panels(); ++p)
      for_vecs(p, [&](int64_t row, int64_t units, int64_t column) {
        gather(bias.data + row * bias.stride, bias.stride, out + offset(p) + column, units);
      });
  }

 private:
  int64_t first_vec(int64_t panel) const { return most_unit_vecs_ == 1 ? panel : vecs() * panel / panels(); }

  // It stays out of the products' code, most of whose weights are packed already.
  [[gnu::noinline]] void pack(int64_t panel, Range depths, E* out) const {
    const int64_t out_row = columns(panel), lanes = gate_distance(panel);
    if (lanes < Vec<A>::kWidth) std::fill_n(out, depths.size() * out_row, E{});  // gates need not fill the last vector
    for_vecs(panel, [&](int64_t row, int64_t units, int64_t column) {
      if constexpr (kPaired<E>)
        pack_pairs(depths, row, units, lanes, out + 2 * column, 2 * out_row);
      else
        pack_vec(depths, row, units, lanes, out + column, out_row);
    });
  }

  // Packs rows [row, row + units) of the weight side by side. They own so many lanes of `out`.
  void pack_vec(Range depths, int64_t row, int64_t units, int64_t lanes, E* out, int64_t out_row) const {
    constexpr int kWidth = Vec<A>::kWidth;
    if (has_columns()) {
      for (int64_t k = depths.begin; k < depths.end; ++k, out += out_row)
        store_first(load_column(row, k, units), out, lanes);
      return;
    }
    Vec<A> block[kWidth];
    int64_t k = depths.begin;
    for (; k + kWidth <= depths.end && is_whole(units, kWidth); k += kWidth) {
      load_whole_block(row, k, block);
      FASTRNN_UNROLL(16)
      for (int j = 0; j < kWidth; ++j, out += out_row) block[j].store(out);
    }
    for (; k < depths.end; k += kWidth) {
      const int64_t columns = std::min<int64_t>(kWidth, depths.end - k);
      load_block(row, units, k, columns, block);
      for (int64_t j = 0; j < columns; ++j, out += out_row) store_first(block[j], out, lanes);
    }
  }

  // The same in pairs of columns, which lie out_row apart. Depths are whole steps of depth.
  void pack_pairs(Range depths, int64_t row, int64_t units, int64_t lanes, E* out, int64_t out_row) const {
    constexpr int kWidth = Vec<A>::kWidth;
    lanes = std::min<int64_t>(lanes, kWidth);
    if (has_columns()) {
      for (int64_t k = depths.begin; k < depths.end; k += 2, out += out_row)
        store_words(
            zip(k < inputs_ ? &weight_(row, k) : nullptr, k + 1 < inputs_ ? &weight_(row, k + 1) : nullptr, units), out,
            lanes);
      return;
    }
    Vec<A> block[kWidth];
    for (int64_t k = depths.begin; k < depths.end; k += 2 * kWidth) {
      for (int j = 0; j < kWidth; ++j) {
        E words[2 * kWidth] = {};
        if (j < units && k < inputs_)
          gather(&weight_(row + j, k), weight_.col_stride, words, std::min<int64_t>(2 * kWidth, inputs_ - k));
        block[j] = load_words(words);
      }
      transpose(block);
      for (int64_t j = 0; j < kWidth; ++j, out += out_row) store_words(block[j], out, lanes);
    }
  }

  // Widens pairs of bfloat16.
  [[gnu::noinline]] void widen(int64_t panel, int64_t k, int64_t depth, Slice& out) const {
    if constexpr (std::is_same_v<S, float>) {
      const int32_t* from = kept_.words() + word_at(kept_.type, panel, k);
      const int64_t row = columns(panel);
      float* to = out;
      for (int64_t left = depth; left > 0; left -= 2, from += row, to += 2 * row)
        for (int64_t j = 0; j < row; j += Vec<A>::kWidth) {
          const Words pairs = load_words(from + j);
          low_bfloat16(pairs).store(to + j);
          if (left > 1) high_bfloat16(pairs).store(to + row + j);
        }
    }
  }

  int64_t gates_;
  int panel_gates_;
  int64_t whole_unit_vecs_;  // of a panel, unless it is told to have fewer
  int64_t most_unit_vecs_;
  int64_t units_;
  int64_t inputs_;
  int64_t depth_;
  Matrix<const S> weight_;
  bool ahead_;
  KeptWeights kept_;
  Buffer<E> data_;
  const E* values_;  // null where nothing is packed ahead
};

}  // namespace fastrnn::FASTRNN_ISA
