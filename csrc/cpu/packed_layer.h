// The weights of one layer and direction, packed once for many calls: their panels, scales and biases in one range of
// bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cells/cell.h"
#include "cpu/packed_weights.h"
#include "scan.h"

namespace fastrnn::FASTRNN_ISA {

// A row of weights as int8: multiples of a scale by which its largest magnitude is 127.
struct Int8Row {
  const float* row;
  int64_t stride;
  float scale;

  Int8Row(const float* values, int64_t value_stride, int64_t n) : row(values), stride(value_stride), scale(0) {
    for (int64_t j = 0; j < n; ++j) scale = std::max(scale, std::abs(row[j * stride]));
    scale /= 127;
  }
  // The nearest multiple, ties to even; 0 of what is not finite.
  static int8_t nearest(float weight, float scale) {
    const float multiple = weight / scale;
    return std::isfinite(multiple) ? static_cast<int8_t>(std::nearbyint(std::clamp(multiple, -127.0f, 127.0f))) : 0;
  }
  float operator[](int64_t j) const { return nearest(row[j * stride], scale) * scale; }
};

template <class S>
class PackedLayer {
 public:
  using A = Accumulate<S>;
  using E = Operand<S>;

  // Says where everything lies in p.packed, or will lie.
  PackedLayer(const CellTraits& cell, const ScanParams<S>& p)
      : p_(p),
        ih_(place(cell.input_gates, p.hidden_size, p.input_size)),
        hh_(place(cell.recurrent_gates, p.hidden_size, p.output_size)),
        hr_(place(1, p.projected() ? p.output_size : 0, p.hidden_size)),
        bias_ih_(take(ih_.width * sizeof(A))),
        bias_hh_(take(hh_.width * sizeof(A))) {}

  int64_t bytes() const { return end_; }

  KeptWeights ih() const { return kept(ih_); }
  KeptWeights hh() const { return kept(hh_); }
  KeptWeights hr() const { return kept(hr_); }
  const A* bias_ih() const { return reinterpret_cast<const A*>(p_.packed + bias_ih_); }
  const A* bias_hh() const { return reinterpret_cast<const A*>(p_.packed + bias_hh_); }

  void write(char* out) const {
    std::memset(out, 0, end_);
    write(ih_, p_.weights.ih, p_.weights.bias_ih, bias_ih_, out);
    write(hh_, p_.weights.hh, p_.weights.bias_hh, bias_hh_, out);
    write(hr_, p_.weights.hr, {}, end_, out);
  }

 private:
  // A matrix: its sizes, and where it begins.
  struct Place {
    int gates;
    int64_t units, inputs, width, values, scales;

    PackedWeights<S> weights(Matrix<const S> weight, bool ahead) const { return {gates, units, inputs, weight, ahead}; }
  };

  Place place(int gates, int64_t units, int64_t inputs) {
    Place place{gates, units, inputs, 0, 0, 0};
    const PackedWeights<S> weights = place.weights({}, false);  // only its sizes are asked
    place.width = weights.width();
    place.values = take(weights.bytes(p_.packed_as));
    place.scales = take(p_.packed_as == WeightType::kInt8 ? place.width * sizeof(float) : 0);
    return place;
  }
  int64_t take(int64_t bytes) {
    const int64_t begin = end_;
    end_ += cpu::in_whole_lines(bytes);
    return begin;
  }

  KeptWeights kept(const Place& place) const {
    if (!p_.packed) return {};
    const bool scaled = p_.packed_as == WeightType::kInt8;
    return {p_.packed + place.values, scaled ? reinterpret_cast<const float*>(p_.packed + place.scales) : nullptr,
            p_.packed_as};
  }

  void write(const Place& place, Matrix<const S> weight, Vector<const S> bias, int64_t bias_at, char* out) const {
    if (place.units == 0) return;
    PackedWeights<S> packed = place.weights(weight, true);
    packed.pack({0, packed.panels()});
    if (bias) packed.pack_bias(bias, reinterpret_cast<A*>(out + bias_at));
    typename PackedWeights<S>::Slice unused;
    const E* const values = packed.slice(0, 0, 0, unused);
    if (p_.packed_as == WeightType::kOperand) {
      std::copy_n(values, packed.bytes() / sizeof(E), reinterpret_cast<E*>(out + place.values));
      return;
    }
    if constexpr (std::is_same_v<S, float>) {
      if (p_.packed_as == WeightType::kBFloat16) {
        write_words(packed, reinterpret_cast<BFloat16*>(out + place.values),
                    [&](int64_t i, int64_t) { return to_bfloat16(values[i]); });
      } else {
        float* const scales = reinterpret_cast<float*>(out + place.scales);
        write_scales(packed, weight, scales);
        write_words(packed, reinterpret_cast<int8_t*>(out + place.values),
                    [&](int64_t i, int64_t column) { return Int8Row::nearest(values[i], scales[column]); });
      }
    }
  }

  static void write_scales(const PackedWeights<float>& packed, Matrix<const float> weight, float* out) {
    Buffer<float> by_row(packed.gates() * packed.units());
    for (int64_t i = 0; i < packed.gates() * packed.units(); ++i)
      by_row[i] = Int8Row(weight.row(i), weight.col_stride, packed.depth()).scale;
    packed.pack_bias({by_row.get(), 1}, out);
  }

  // Writes value(index among the floats, column) of all panels to their words.
  template <class Short, class F>
  void write_words(const PackedWeights<float>& packed, Short* out, F&& value) const {
    const int64_t parts = per_word(p_.packed_as);
    for (int64_t p = 0; p < packed.panels(); ++p)
      for (int64_t k = 0; k < packed.depth(); ++k)
        for (int64_t j = 0; j < packed.columns(p); ++j) {
          const int64_t word = packed.word_at(p_.packed_as, p, k / parts * parts) + j;
          out[word * parts + k % parts] = value(packed.at(p, k) + j, packed.offset(p) + j);
        }
  }

  const ScanParams<S>& p_;
  int64_t end_ = 0;
  Place ih_, hh_, hr_;
  int64_t bias_ih_, bias_hh_;
};

// The same weights in torch's layout and the type of the layer: few units read them so where samples lie in the lanes.
// They have the values that the weight type holds.
template <class S>
class PlainLayer {
 public:
  PlainLayer(const CellTraits& cell, const ScanParams<S>& p) : p_(p), rows_(cell.input_gates * p.hidden_size) {}

  int64_t bytes() const { return cpu::in_whole_lines(rows_ * (columns() + 2) * sizeof(S)); }

  void write(char* out) const {
    S* at = write_matrix(p_.weights.ih, p_.input_size, reinterpret_cast<S*>(out));
    at = write_matrix(p_.weights.hh, p_.output_size, at);
    for (const Vector<const S>& bias : {p_.weights.bias_ih, p_.weights.bias_hh})
      for (int64_t i = 0; i < rows_; ++i) *at++ = bias ? bias[i] : S{};
  }

  Weights<const S> weights() const {
    const S* const ih = reinterpret_cast<const S*>(p_.packed);
    const S* const hh = ih + rows_ * p_.input_size;
    const S* const bias = hh + rows_ * p_.output_size;
    return {{ih, p_.input_size, 1}, {hh, p_.output_size, 1}, {bias, 1}, {bias + rows_, 1}, {}, {}};
  }

 private:
  int64_t columns() const { return p_.input_size + p_.output_size; }

  S* write_matrix(Matrix<const S> weight, int64_t columns, S* out) const {
    for (int64_t i = 0; i < rows_; ++i, out += columns) {
      gather(weight.row(i), weight.col_stride, out, columns);
      if constexpr (std::is_same_v<S, float>) {
        if (p_.packed_as == WeightType::kBFloat16)
          std::transform(out, out + columns, out, [](float w) { return to_float(to_bfloat16(w)); });
        if (p_.packed_as == WeightType::kInt8) {
          const Int8Row row(weight.row(i), weight.col_stride, columns);
          for (int64_t j = 0; j < columns; ++j) out[j] = row[j];
        }
      }
    }
    return out;
  }

  const ScanParams<S>& p_;
  int64_t rows_;
};

}  // namespace fastrnn::FASTRNN_ISA
