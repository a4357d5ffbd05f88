// From the ops' lists to the tables in arguments.h, and back.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "cpu/cell_registry.h"
#include "dispatch.h"

namespace fastrnn {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Tells whether a cell is one of the library's own.
inline bool is_built_in(std::string_view cell) {
  return Cells::dispatch(cell, []<class Cell>() {});
}

inline CellFacts cell_facts(const std::string& cell) {
  CellFacts facts{};
  if (Cells::dispatch(cell, [&]<class Cell>() { facts = kFacts<Cell>; })) return facts;
  const CellFacts* const registered = cpu::find_cell(cell);
  STD_TORCH_CHECK(registered, "fastrnn: unknown cell '", cell,
                  "'; a cell of one's own is known once a layer of it was made, or its library was loaded");
  return *registered;
}

// Hands out the entries of a list, one for each tensor that belongs to the cell.
template <class Entry>
class ListReader {
 public:
  ListReader(const char* list_name, const std::vector<Entry>& list, const CellFacts& cell)
      : name_(list_name), list_(list), cell_(cell) {}

  template <class T>
  void operator()(const TensorInfo& info, T& entry) {
    if (!info.belongs_to(cell_)) return;
    if (count_ < list_.size()) entry = list_[count_];
    names_[count_++] = info.name;
  }
  void finish() const {
    if (count_ == list_.size()) return;
    std::string names;
    for (size_t i = 0; i < count_; ++i) names.append(i ? ", " : "").append(names_[i]);
    STD_TORCH_CHECK(false, "fastrnn: ", name_, " has ", list_.size(), " entries, expected ", count_, ": ", names);
  }

 private:
  static constexpr size_t kMost = 64;  // more than any table has rows
  const char* name_;
  const std::vector<Entry>& list_;
  const CellFacts& cell_;
  size_t count_ = 0;
  std::array<const char*, kMost> names_;
};

// One bool for each of the cell's tensors.
inline PerTensor<bool> flags_of(const char* list_name, const std::vector<bool>& list, const CellFacts& cell) {
  PerTensor<bool> flags{};
  ListReader reader(list_name, list, cell);
  for_each_tensor(reader, flags);
  reader.finish();
  return flags;
}

// The list has the tensors that are there, as autograd overlooks a list with a None in it; `present` has the index of
// each in the table of the cell's tensors. (The tracer of torch.jit takes a list of integers, but none of bools.)
inline PerTensor<OptionalTensor> tensors_of(const std::vector<Tensor>& list, const std::vector<int64_t>& present,
                                            const CellFacts& cell) {
  STD_TORCH_CHECK(list.size() == present.size(), "fastrnn: tensors has ", list.size(), " entries, present ",
                  present.size());
  PerTensor<OptionalTensor> tensors;
  size_t count = 0;
  int64_t index = 0;
  for_each_tensor(
      [&](const TensorInfo& info, OptionalTensor& tensor) {
        if (!info.belongs_to(cell)) return;
        const bool is_present = count < list.size() && present[count] == index;
        STD_TORCH_CHECK(is_present || !info.required(), "fastrnn: ", info.name, " is absent");
        if (is_present) tensor = list[count++];
        ++index;
      },
      tensors);
  STD_TORCH_CHECK(count == list.size(), "fastrnn: present must have increasing indices below ", index);
  return tensors;
}

// The results that `in_list` chooses.
template <class Entry, class InList>
PerResult<OptionalTensor> results_of(const char* list_name, const std::vector<Entry>& list, const CellFacts& cell,
                                     InList&& in_list) {
  PerResult<OptionalTensor> results;
  ListReader reader(list_name, list, cell);
  for_each_result(
      [&](const TensorInfo& info, OptionalTensor& result) {
        if (in_list(info)) reader(info, result);
      },
      results);
  reader.finish();
  return results;
}

inline PerResult<OptionalTensor> gradients_of(const std::vector<OptionalTensor>& list, const CellFacts& cell) {
  return results_of("grads", list, cell, [](const TensorInfo& result) { return result.differentiable(); });
}
inline PerResult<OptionalTensor> saved_of(const std::vector<Tensor>& list, const CellFacts& cell) {
  return results_of("saved", list, cell, is_saved);
}

inline auto list_writer(std::vector<Tensor>& list, const CellFacts& cell) {
  return [&](const TensorInfo& info, const OptionalTensor& tensor) {
    if (info.belongs_to(cell)) list.push_back(*tensor);
  };
}

inline std::vector<Tensor> list_of(const PerTensor<OptionalTensor>& tensors, const CellFacts& cell) {
  std::vector<Tensor> list;
  for_each_tensor(list_writer(list, cell), tensors);
  return list;
}

inline std::vector<Tensor> list_of(const PerResult<OptionalTensor>& results, const CellFacts& cell) {
  std::vector<Tensor> list;
  for_each_result(list_writer(list, cell), results);
  return list;
}

}  // namespace fastrnn
