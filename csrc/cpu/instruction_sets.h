// The instruction sets of a build, and the best one that this machine runs.
#pragma once

#include <string>
#include <string_view>

#include "cpu/kernels.h"

namespace fastrnn::cpu {

// "avx512,avx2,plain": what this machine can run, or what it cannot, best first.
std::string instruction_sets(bool here);

// The set of that name, or the best one for an empty name; null if this machine or this build does not have it.
const InstructionSet* find_instruction_set(std::string_view name);

}  // namespace fastrnn::cpu
