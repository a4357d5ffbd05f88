// What the ops on CPU ask of the machine and of torch: an instruction set, how many threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "cpu/cell_registry.h"
#include "cpu/instruction_sets.h"

namespace fastrnn::cpu {

// The best set this machine runs, or the one that FASTRNN_CPU_ISA named at the first call.
const InstructionSet& instruction_set();

// Whether somebody chose it.
bool instruction_set_was_asked_for();

// Takes the set of that name from now on; an empty name stands for what the environment says.
void use_instruction_set(std::string name);

// A set's kernels for a storage type.
template <class S>
const Kernels<S>& kernels(const InstructionSet& set = instruction_set()) {
  STD_TORCH_CHECK(set.has<S>(), "fastrnn: this build leaves out the kernels of this dtype: a quick build has those of ",
                  "float32 alone, a sanitized one none of second derivatives");
  return set.kernels<S>();
}

// The name of the set that cells are compiled for now: one that differs in products of bfloat16 alone takes the kernels
// of the set below it.
inline std::string_view cell_instruction_set(const InstructionSet& set = instruction_set()) {
  return set.rest ? set.rest->name : set.name;
}

// The kernels of a cell that was compiled later, for that set; null if none are loaded.
template <class S>
const void* cell_kernels(const std::string& cell, const InstructionSet& set = instruction_set()) {
  return find_kernels(cell, cell_instruction_set(set), kTypeName<S>);
}

// Whether this is a child of the process that loaded the library.
bool forked();

// torch.set_num_threads decides. A forked child runs on one thread: the parent's OpenMP pool does not survive a fork.
int64_t most_threads();

// f(begin, end) for ranges that make up [0, items), at least `grain` items each, side by side where there are threads.
template <class F>
void for_ranges(int64_t items, int64_t grain, const F& f) {
  if (most_threads() == 1 || items <= grain) return f(0, items);
  torch::stable::parallel_for(0, items, grain, f);
}

}  // namespace fastrnn::cpu
