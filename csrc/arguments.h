// The tensors of a scan and its results: THE tables of their names, roles and shapes. From these follow the order of
// the ops' lists, which also Python reads (op `cell_tensors`), what is checked, what is allocated and what a kernel
// sees.
#pragma once

#include <array>
#include <cstdint>

#include "scan.h"

namespace fastrnn {

// Facts of a cell, for code that runs before the dispatch. The numbers are counts, for each unit.
struct CellFacts {
  int64_t input_gates;
  int64_t recurrent_gates;
  int64_t cell_states;
  int64_t vectors;
  int64_t extra_inputs;
  int64_t numbers;
  int64_t saved;
  bool has_output;  // h before a projection, which weight_hr multiplies

  bool operator==(const CellFacts&) const = default;
};

constexpr int64_t kMostOfAUnit = 1024;  // values of a kind: products of sizes then do not overflow

struct ScanSizes {
  int64_t T, N, I, H, R;
  CellFacts cell;
};

// What a tensor is: its shape, what a group of samples takes of it, and how vmap maps it follow.
enum class Role {
  kSequence,  // [T, N, columns], or [rows, columns] when packed or jagged
  kState,     // [N, columns]
  kMatrix,    // weights [rows, columns], or [groups, rows, columns]
  kVector,    // weights [columns], or [groups, columns]
};

enum class Extent { kOne, kInput, kHidden, kOutput, kInputGates, kRecurrentGates, kCellStates, kVectors, kSaved };

inline int64_t length(Extent extent, const ScanSizes& sizes) {
  switch (extent) {
    case Extent::kOne: return 1;
    case Extent::kInput: return sizes.I;
    case Extent::kHidden: return sizes.H;
    case Extent::kOutput: return sizes.R;
    case Extent::kInputGates: return sizes.cell.input_gates * sizes.H;
    case Extent::kRecurrentGates: return sizes.cell.recurrent_gates * sizes.H;
    case Extent::kCellStates: return sizes.cell.cell_states * sizes.H;
    case Extent::kVectors: return sizes.cell.vectors * sizes.H;
    case Extent::kSaved: return sizes.cell.saved * sizes.H;
  }
  return 0;
}

enum class CellsWithIt { kAll, kWithCellStates, kWithOutput, kWithVectors, kWithExtraInputs, kThatSave };

enum class Note {
  kNone,
  kRequired,     // as an argument
  kConstant,     // a result without a gradient
  kAccumulated,  // float32 even if the input is of a half type
};

struct TensorInfo {
  const char* name;
  Role role;
  Extent rows;  // of a matrix
  Extent columns;
  CellsWithIt cells = CellsWithIt::kAll;
  Note note = Note::kNone;
  int index = 0;  // among the extra inputs

  bool belongs_to(const CellFacts& cell) const {
    switch (cells) {
      case CellsWithIt::kAll: return true;
      case CellsWithIt::kWithCellStates: return cell.cell_states > 0;
      case CellsWithIt::kWithOutput: return cell.has_output;
      case CellsWithIt::kWithVectors: return cell.vectors > 0;
      case CellsWithIt::kWithExtraInputs: return index < cell.extra_inputs;
      case CellsWithIt::kThatSave: return cell.saved > 0;
    }
    return false;
  }
  bool required() const { return note == Note::kRequired; }
  bool differentiable() const { return note != Note::kConstant; }
  bool is_weight() const { return role == Role::kMatrix || role == Role::kVector; }
  int64_t weight_rank() const { return role == Role::kMatrix ? 2 : 1; }  // without groups
};

// Something for each tensor of a scan that may have a gradient.
template <class T>
struct PerTensor {
  T input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, reset_h, reset_c, vectors;
  std::array<T, kMostExtraInputs> extra;
};

// THE table of these tensors: calls f(info, of.input...), f(info, of.h_0...) and so on, for PerTensors side by side.
template <class F, class... Of>
void for_each_tensor(F&& f, Of&&... of) {
  using enum Role;
  using enum Extent;
  using enum CellsWithIt;
  using enum Note;
  f(TensorInfo{"input", kSequence, kOne, kInput, kAll, kRequired}, of.input...);
  f(TensorInfo{"h_0", kState, kOne, kOutput, kAll, kRequired}, of.h_0...);
  f(TensorInfo{"c_0", kState, kOne, kCellStates, kWithCellStates, kRequired}, of.c_0...);
  f(TensorInfo{"weight_ih", kMatrix, kInputGates, kInput, kAll, kRequired}, of.weight_ih...);
  f(TensorInfo{"weight_hh", kMatrix, kRecurrentGates, kOutput, kAll, kRequired}, of.weight_hh...);
  f(TensorInfo{"bias_ih", kVector, kOne, kInputGates}, of.bias_ih...);
  f(TensorInfo{"bias_hh", kVector, kOne, kRecurrentGates}, of.bias_hh...);
  f(TensorInfo{"weight_hr", kMatrix, kOutput, kHidden, kWithOutput}, of.weight_hr...);
  // What a reset replaces the state by: zeros if absent.
  f(TensorInfo{"reset_h", kState, kOne, kOutput}, of.reset_h...);
  f(TensorInfo{"reset_c", kState, kOne, kCellStates, kWithCellStates}, of.reset_c...);
  f(TensorInfo{"vectors", kVector, kOne, kVectors, kWithVectors, kRequired}, of.vectors...);
  constexpr std::array kExtraNames = {"extra_0", "extra_1", "extra_2", "extra_3"};
  static_assert(kExtraNames.size() == kMostExtraInputs);
  for (int i = 0; i < kMostExtraInputs; ++i)
    f(TensorInfo{kExtraNames[i], kSequence, kOne, kHidden, kWithExtraInputs, kRequired, i}, of.extra[i]...);
}

// The views of a scan's tensors by the names in the table, for for_each_tensor.
template <class S>
struct ViewPerTensor {
  Sequence<S>& input;
  Matrix<S>&h_0, &c_0, &weight_ih, &weight_hh;
  Vector<S>&bias_ih, &bias_hh;
  Matrix<S>&weight_hr, &reset_h, &reset_c;
  Vector<S>& vectors;
  std::array<Sequence<S>, kMostExtraInputs>& extra;

  explicit ViewPerTensor(ScanTensors<S>& views)
      : input(views.x),
        h_0(views.h_0),
        c_0(views.c_0),
        weight_ih(views.weights.ih),
        weight_hh(views.weights.hh),
        bias_ih(views.weights.bias_ih),
        bias_hh(views.weights.bias_hh),
        weight_hr(views.weights.hr),
        reset_h(views.reset_h),
        reset_c(views.reset_c),
        vectors(views.weights.vectors),
        extra(views.extra) {}
};

// Something for each result of a scan.
template <class T>
struct PerResult {
  T y, h_n, c_n, gates, cells;
};

// The table of the results.
template <class F, class... Of>
void for_each_result(F&& f, Of&&... of) {
  using enum Role;
  using enum Extent;
  using enum CellsWithIt;
  using enum Note;
  f(TensorInfo{"y", kSequence, kOne, kOutput}, of.y...);
  f(TensorInfo{"h_n", kState, kOne, kOutput}, of.h_n...);
  f(TensorInfo{"c_n", kState, kOne, kCellStates, kWithCellStates}, of.c_n...);
  f(TensorInfo{"gates", kSequence, kOne, kSaved, kThatSave, kConstant}, of.gates...);
  f(TensorInfo{"cells", kSequence, kOne, kCellStates, kWithCellStates, kAccumulated}, of.cells...);
}

// The results that backward reads are the sequences; their order in its list is that of the table.
inline bool is_saved(const TensorInfo& result) { return result.role == Role::kSequence; }

}  // namespace fastrnn
