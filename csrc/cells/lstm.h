// LSTM, gates i, f, g, o: c' = f * c + i * g, h' = o * tanh(c') (torch.nn.LSTM). A projection of h' is the kernel's.
#pragma once

#include "cells/cell.h"
#include "cells/math.h"

namespace fastrnn {

struct Lstm : PlainCell<4, true> {
  static constexpr std::string_view kName = "lstm";
  static constexpr int kSaved = 4;  // i, f, g, o
  static constexpr bool kSplitGateGradients = false;
  static constexpr bool kReadsPreviousH = false;
  static constexpr bool kBackwardReadsPreviousH = false;
  static constexpr bool kReadsNextH = false;

  template <class V>
  FASTRNN_FN static void forward(const std::array<V, 4>& gx, const std::array<V, 4>& gh, State<V>& state,
                                 std::array<V, 4>& saved) {
    const V i = math::sigmoid(gx[0] + gh[0]);
    const V f = math::sigmoid(gx[1] + gh[1]);
    const V g = math::tanh(gx[2] + gh[2]);
    const V o = math::sigmoid(gx[3] + gh[3]);
    state.c[0] = mul_add(f, state.c[0], i * g);
    saved = {i, f, g, o};
    state.h = output(saved, state.c[0]);
  }

  // Returns h' from what is saved. Backward needs it again where y holds the projection of h' instead.
  template <class V>
  FASTRNN_FN static V output(const std::array<V, 4>& saved, V c) {
    return saved[3] * math::tanh(c);
  }

  template <class V>
  FASTRNN_FN static void backward(const std::array<V, 4>& saved, const State<V>& prev, const State<V>& next,
                                  State<V>& d_state, std::array<V, 4>& d_gx, std::array<V, 4>& d_gh) {
    const auto [i, f, g, o] = saved;
    const V tanh_c = math::tanh(next.c[0]);
    const V dc = mul_add(d_state.h * o, 1 - tanh_c * tanh_c, d_state.c[0]);
    d_gx[0] = dc * g * i * (1 - i);
    d_gx[1] = dc * prev.c[0] * f * (1 - f);
    d_gx[2] = dc * i * (1 - g * g);
    d_gx[3] = d_state.h * tanh_c * o * (1 - o);
    d_gh = d_gx;
    d_state = {V{}, {dc * f}};
  }
};

}  // namespace fastrnn
