// Elman network: h' = phi(W_ih x + b_ih + W_hh h + b_hh), phi = tanh or relu (torch.nn.RNN).
//
// Nothing is saved: both derivatives are functions of h' itself.
#pragma once

#include "cells/cell.h"
#include "cells/math.h"

namespace fastrnn {

struct Tanh {
  static constexpr std::string_view kName = "rnn_tanh";
  template <class V>
  FASTRNN_FN static V value(V x) {
    return math::tanh(x);
  }
  template <class V>
  FASTRNN_FN static V gradient(V y, V dy) {
    return dy * (1 - y * y);
  }
};

struct Relu {
  static constexpr std::string_view kName = "rnn_relu";
  template <class V>
  FASTRNN_FN static V value(V x) {
    return select(x <= V(0), V(0), x);  // a NaN passes, as in torch
  }
  template <class V>
  FASTRNN_FN static V gradient(V y, V dy) {
    return select(y <= V(0), V(0), dy);
  }
};

template <class Activation>
struct Elman : PlainCell<1, false> {
  static constexpr std::string_view kName = Activation::kName;
  static constexpr int kSaved = 0;
  static constexpr bool kSplitGateGradients = false;
  static constexpr bool kReadsPreviousH = false;
  static constexpr bool kBackwardReadsPreviousH = false;
  static constexpr bool kReadsNextH = true;

  template <class V>
  FASTRNN_FN static void forward(const std::array<V, 1>& gx, const std::array<V, 1>& gh, State<V>& state,
                                 std::array<V, 0>&) {
    state.h = Activation::value(gx[0] + gh[0]);
  }

  template <class V>
  FASTRNN_FN static void backward(const std::array<V, 0>&, const State<V>&, const State<V>& next, State<V>& d_state,
                                  std::array<V, 1>& d_gx, std::array<V, 1>& d_gh) {
    d_gx[0] = d_gh[0] = Activation::gradient(next.h, d_state.h);
    d_state.h = V{};
  }
};

}  // namespace fastrnn
