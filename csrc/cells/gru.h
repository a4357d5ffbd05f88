// GRU, gates r, z, n, reset after the product: n = tanh(gx_n + r * gh_n), h' = (1 - z) * n + z * h (torch.nn.GRU).
#pragma once

#include "cells/cell.h"
#include "cells/math.h"

namespace fastrnn {

struct Gru : PlainCell<3, false> {
  static constexpr std::string_view kName = "gru";
  static constexpr int kSaved = 4;                   // r, z, n, gh_n
  static constexpr bool kSplitGateGradients = true;  // r multiplies d gh_n alone
  static constexpr bool kReadsPreviousH = true;
  static constexpr bool kBackwardReadsPreviousH = true;
  static constexpr bool kReadsNextH = false;

  template <class V>
  FASTRNN_FN static void forward(const std::array<V, 3>& gx, const std::array<V, 3>& gh, State<V>& state,
                                 std::array<V, 4>& saved) {
    const V r = math::sigmoid(gx[0] + gh[0]);
    const V z = math::sigmoid(gx[1] + gh[1]);
    const V n = math::tanh(mul_add(r, gh[2], gx[2]));
    state.h = mul_add(z, state.h - n, n);
    saved = {r, z, n, gh[2]};
  }

  template <class V>
  FASTRNN_FN static void backward(const std::array<V, 4>& saved, const State<V>& prev, const State<V>&,
                                  State<V>& d_state, std::array<V, 3>& d_gx, std::array<V, 3>& d_gh) {
    const auto [r, z, n, gh_n] = saved;
    const V dh = d_state.h;
    const V d_n = dh * (1 - z) * (1 - n * n);  // the gradient of n's argument
    d_gx = {d_n * gh_n * r * (1 - r), dh * (prev.h - n) * z * (1 - z), d_n};
    d_gh = {d_gx[0], d_gx[1], d_n * r};
    d_state.h = dh * z;
  }
};

}  // namespace fastrnn
