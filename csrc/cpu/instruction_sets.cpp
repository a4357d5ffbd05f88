// Which instruction sets a build has.
#include "cpu/instruction_sets.h"

#include <array>

namespace fastrnn::cpu {
namespace {

// Best first.
constexpr std::array kInstructionSets = {
#if defined(FASTRNN_ONLY)  // of a build with a part of the kernels: &kAvx2, say
    FASTRNN_ONLY,
#elif defined(__x86_64__)
    &kAmx, &kAvx512Bf16, &kAvx512, &kAvx2, &kPlain,
#elif defined(__aarch64__)
    &kNeonBf16,
    &kNeon,
    &kPlain,
#else
    &kPlain,
#endif
};

}  // namespace

std::string instruction_sets(bool here) {
  std::string names;
  for (const InstructionSet* set : kInstructionSets)
    if (set->runs_here() == here) names.append(names.empty() ? "" : ",").append(set->name);
  return names;
}

const InstructionSet* find_instruction_set(std::string_view name) {
  for (const InstructionSet* set : kInstructionSets)
    if ((name.empty() || set->name == name) && set->runs_here()) return set;
  return nullptr;
}

}  // namespace fastrnn::cpu
