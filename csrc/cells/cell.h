// The contract of a cell: one step of the recurrence for one hidden unit, forward and backward.
//
// A cell is written for a value type V that may be a scalar or a SIMD vector of units. Input products
// gx = W_ih x + b_ih and recurrent products gh = W_hh h + b_hh arrive separately, because the GRU multiplies a part of
// gh alone. Gates are saved after activation, so backward needs no exponential but tanh(c).
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string_view>

#include "arguments.h"
#include "dtypes.h"

namespace fastrnn {

template <class V, int kCellStates = 1>
struct State {
  V h;
  std::array<V, kCellStates> c;  // unused by cells without a state beside h
};

// A weight matrix has at most so many gates a unit.
constexpr int kMostGates = 16;

// A plain cell has gates with both products, and nothing else than h and at most one c. Kernels of GPUs and packed
// weights take no other cells.
template <int gates, bool has_c>
struct PlainCell {
  static constexpr int kGates = gates;
  static constexpr int kInputGates = gates;      // rows of W_ih a unit, in torch's order
  static constexpr int kRecurrentGates = gates;  // rows of W_hh
  static constexpr int kCellStates = has_c;      // states beside h
  static constexpr int kVectors = 0;             // parameters of one number a unit
  static constexpr int kExtraInputs = 0;         // inputs of one number a unit and step, beside x
  static constexpr int kNumbers = 0;             // numbers that are given with a call
};

template <class C>
concept Plain = std::derived_from<C, PlainCell<C::kInputGates, (C::kCellStates > 0)>>;

template <class C, class V>
using StateOf = State<V, std::max(1, C::kCellStates)>;

// What a cell that is not plain reads beside products and states.
template <class V, class C>
struct Extras {
  std::array<V, C::kVectors> vectors;
  std::array<V, C::kExtraInputs> inputs;
  std::array<V, C::kNumbers> numbers;
};

// Their gradients at one step of one sample.
template <class V, class C>
struct ExtraGradients {
  std::array<V, C::kVectors> vectors;
  std::array<V, C::kExtraInputs> inputs;
};

// Calls to a cell's functions, which of a plain one take no extras.
//
// `state` holds the state before the step, and then the state after it.
template <class C, class V>
FASTRNN_FN void forward_of(const std::array<V, C::kInputGates>& gx, const std::array<V, C::kRecurrentGates>& gh,
                           const Extras<V, C>& extra, StateOf<C, V>& state, std::array<V, C::kSaved>& saved) {
  if constexpr (Plain<C>)
    C::forward(gx, gh, state, saved);
  else
    C::forward(gx, gh, extra, state, saved);
}

// `d_state` holds the gradient of the state after the step, and then that of the state before it without the part that
// flows through gh: the caller multiplies d_gh by W_hh.
template <class C, class V>
FASTRNN_FN void backward_of(const std::array<V, C::kSaved>& saved, const Extras<V, C>& extra,
                            const StateOf<C, V>& previous, const StateOf<C, V>& next, StateOf<C, V>& d_state,
                            std::array<V, C::kInputGates>& d_gx, std::array<V, C::kRecurrentGates>& d_gh,
                            ExtraGradients<V, C>& d_extra) {
  if constexpr (Plain<C>)
    C::backward(saved, previous, next, d_state, d_gx, d_gh);
  else
    C::backward(saved, extra, previous, next, d_state, d_gx, d_gh, d_extra);
}

// A projection needs h before it, and replaces h, so that nobody can read the unit's own h afterwards: a plain cell
// with a c can be projected, and another one with such a function that does not read h.
template <class C>
constexpr bool kHasOutput = [] {
  if constexpr (Plain<C>)
    return C::kCellStates > 0;
  else if constexpr (C::kReadsPreviousH || C::kBackwardReadsPreviousH || C::kReadsNextH)
    return false;
  else
    return requires { &C::template output<float>; };
}();

// Returns h before a projection.
template <class C, class V>
FASTRNN_FN V output_of(const std::array<V, C::kSaved>& saved, const Extras<V, C>& extra, const StateOf<C, V>& previous,
                       const StateOf<C, V>& next) {
  if constexpr (Plain<C>)
    return C::output(saved, next.c[0]);
  else
    return C::output(saved, extra, previous, next);
}

// All that the CPU engine and the CUDA kernels ask of a cell C over values V. Nothing else in csrc knows a cell but
// the list in dispatch.h, and the registry of cells that are compiled later (cpu/cell_registry.h).
template <class C, class V>
concept CellOver =
    requires(const std::array<V, C::kInputGates>& gx, const std::array<V, C::kRecurrentGates>& gh,
             const Extras<V, C>& extra, StateOf<C, V>& state, const StateOf<C, V>& previous, const StateOf<C, V>& next,
             std::array<V, C::kSaved>& saved, const std::array<V, C::kSaved>& kept, std::array<V, C::kInputGates>& d_gx,
             std::array<V, C::kRecurrentGates>& d_gh, ExtraGradients<V, C>& d_extra) {
      // The op calls the cell by this name, which stands in a list between commas.
      { C::kName } -> std::convertible_to<std::string_view>;
      requires C::kInputGates >= 1 && C::kInputGates <= kMostGates;
      requires C::kRecurrentGates >= 0 && C::kRecurrentGates <= kMostGates;
      requires C::kCellStates <= kMostOfAUnit&& C::kVectors <= kMostOfAUnit&& C::kNumbers <= kMostOfAUnit;
      requires C::kExtraInputs <= kMostExtraInputs;
      // A unit saves this many values a step for backward, beside its states.
      { C::kSaved } -> std::convertible_to<int>;
      requires C::kSaved >= 0 && C::kSaved <= kMostOfAUnit;
      // d gx and d gh differ.
      { C::kSplitGateGradients } -> std::convertible_to<bool>;
      requires C::kSplitGateGradients || C::kInputGates == C::kRecurrentGates;
      // Forward reads the unit's own h before the step.
      { C::kReadsPreviousH } -> std::convertible_to<bool>;
      // Backward reads it.
      { C::kBackwardReadsPreviousH } -> std::convertible_to<bool>;
      // Backward reads h after the step, which a projection replaces.
      { C::kReadsNextH } -> std::convertible_to<bool>;

      { forward_of<C, V>(gx, gh, extra, state, saved) } -> std::same_as<void>;
      { backward_of<C, V>(kept, extra, previous, next, state, d_gx, d_gh, d_extra) } -> std::same_as<void>;
    };

// Code that is compiled once for all cells knows the constants of one by these values.
struct CellTraits {
  int input_gates;
  int recurrent_gates;
  int cell_states;
  int vectors;
  int extra_inputs;
  int saved;
  bool split_gate_gradients;
  bool reads_previous_h;
  bool backward_reads_previous_h;
  bool reads_next_h;

  // Kernels with samples in lanes take no other cells.
  constexpr bool suits_lanes() const {
    return input_gates == recurrent_gates && cell_states <= 1 && vectors == 0 && extra_inputs == 0;
  }
  // A panel has the units that the wider of the two matrices takes.
  constexpr int panel_gates() const { return std::max(input_gates, recurrent_gates); }
};

template <class C>
constexpr CellTraits kTraits = {.input_gates = C::kInputGates,
                                .recurrent_gates = C::kRecurrentGates,
                                .cell_states = C::kCellStates,
                                .vectors = C::kVectors,
                                .extra_inputs = C::kExtraInputs,
                                .saved = C::kSaved,
                                .split_gate_gradients = C::kSplitGateGradients,
                                .reads_previous_h = C::kReadsPreviousH,
                                .backward_reads_previous_h = C::kBackwardReadsPreviousH,
                                .reads_next_h = C::kReadsNextH};

template <class Cell>
constexpr CellFacts kFacts = {.input_gates = Cell::kInputGates,
                              .recurrent_gates = Cell::kRecurrentGates,
                              .cell_states = Cell::kCellStates,
                              .vectors = Cell::kVectors,
                              .extra_inputs = Cell::kExtraInputs,
                              .numbers = Cell::kNumbers,
                              .saved = Cell::kSaved,
                              .has_output = kHasOutput<Cell>};

}  // namespace fastrnn
