// The contract of a cell: one step of the recurrence for one hidden unit, forward and backward.
//
// A cell is written for a value type V that may be a scalar or a SIMD vector of units. Input products
// gx = W_ih x + b_ih and recurrent products gh = W_hh h + b_hh arrive separately, because the GRU multiplies a part of
// gh alone. Gates are saved after activation, so backward needs no exponential but tanh(c).
#pragma once

#include <array>
#include <concepts>
#include <string_view>

namespace fastrnn {

template <class V>
struct State {
  V h;
  V c;  // unused by cells without a cell state
};

// A panel of products holds all gates of a vector of units, and has this many vectors.
constexpr int kMostGates = 4;

// All that the CPU engine and the CUDA kernels ask of a cell C over values V. Nothing else in csrc knows a cell but
// the list in dispatch.h.
template <class C, class V>
concept CellOver =
    requires(const std::array<V, C::kGates>& gx, const std::array<V, C::kGates>& gh, State<V>& state,
             const State<V>& previous, const State<V>& next, std::array<V, C::kSaved>& saved,
             const std::array<V, C::kSaved>& kept, std::array<V, C::kGates>& d_gx, std::array<V, C::kGates>& d_gh) {
      // The op calls the cell by this name, which stands in a list between commas.
      { C::kName } -> std::convertible_to<std::string_view>;
      // The rows of the weights have this many gates a unit, in torch's order.
      { C::kGates } -> std::convertible_to<int>;
      requires C::kGates >= 1 && C::kGates <= kMostGates;
      // A unit saves this many values a step for backward, beside h and c.
      { C::kSaved } -> std::convertible_to<int>;
      requires C::kSaved >= 0;
      // The state has a c beside h.
      { C::kHasCellState } -> std::convertible_to<bool>;
      // d gx and d gh differ.
      { C::kSplitGateGradients } -> std::convertible_to<bool>;
      // Backward reads h before the step; forward then reads it, too.
      { C::kReadsPreviousH } -> std::convertible_to<bool>;
      // Backward reads h after the step, which a projection replaces: a cell with a c reads `saved` instead.
      { C::kReadsNextH } -> std::convertible_to<bool>;
      requires !(C::kHasCellState && C::kReadsNextH);

      // `state` holds the state before the step, and then the state after it.
      { C::forward(gx, gh, state, saved) } -> std::same_as<void>;
      // `state` holds the gradient of the state after the step, and then that of the state before it without the part
      // that flows through gh: the caller multiplies d_gh by W_hh.
      { C::backward(kept, previous, next, state, d_gx, d_gh) } -> std::same_as<void>;
      // Only a cell with a c can be projected: output gives h before the projection from what is saved and the new c.
      requires !C::kHasCellState || requires(V c) {
        { C::output(kept, c) } -> std::same_as<V>;
      };
    };

// Code that is compiled once for all cells knows the constants of one by these values.
struct CellTraits {
  int gates;
  int saved;
  bool has_cell_state;
  bool split_gate_gradients;
  bool reads_previous_h;
  bool reads_next_h;
};

template <class C>
constexpr CellTraits kTraits = {C::kGates,          C::kSaved,     C::kHasCellState, C::kSplitGateGradients,
                                C::kReadsPreviousH, C::kReadsNextH};

}  // namespace fastrnn
