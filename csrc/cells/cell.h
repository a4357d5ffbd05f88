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

template <class C, class V>
concept CellOver = requires(const std::array<V, C::kGates>& gx, const std::array<V, C::kGates>& gh, State<V>& state,
                            std::array<V, C::kSaved>& saved, std::array<V, C::kGates>& d) {
  // The name of the cell in the op.
  { C::kName } -> std::convertible_to<std::string_view>;
  // Gates, in torch's order.
  { C::kGates } -> std::convertible_to<int>;
  // Values a unit and step saves for backward, beside h and c.
  { C::kSaved } -> std::convertible_to<int>;
  // The state has a c beside h.
  { C::kHasCellState } -> std::convertible_to<bool>;
  // d gx and d gh differ.
  { C::kSplitGateGradients } -> std::convertible_to<bool>;
  // What backward reads of h: the state before the step, the state after it.
  { C::kReadsPreviousH } -> std::convertible_to<bool>;
  { C::kReadsNextH } -> std::convertible_to<bool>;

  // state: in the state before the step, out the state after it.
  { C::forward(gx, gh, state, saved) } -> std::same_as<void>;
  // d_state: in the gradient of the state after the step; out that of the state before it, without the part that
  // flows through gh (the caller multiplies d_gh by W_hh).
  { C::backward(saved, state, state, state, d, d) } -> std::same_as<void>;
};

}  // namespace fastrnn
