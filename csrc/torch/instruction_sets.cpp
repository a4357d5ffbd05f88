#include "torch/instruction_sets.h"

#include <torch/headeronly/util/Exception.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

namespace fastrnn::cpu {
namespace {

// Best first.
constexpr std::array kInstructionSets = {
#if defined(FASTRNN_ONLY)  // of a build with a part of the kernels: &kAvx2, say
    FASTRNN_ONLY,
#elif defined(__x86_64__)
    &kAmx, &kAvx512Bf16, &kAvx512, &kAvx2, &kPlain,
#elif defined(__aarch64__)
    &kNeon,
    &kPlain,
#else
    &kPlain,
#endif
};

const pid_t kLoadedIn = getpid();

}  // namespace

std::string instruction_sets(bool here) {
  std::string names;
  for (const InstructionSet* set : kInstructionSets)
    if (set->runs_here() == here) names.append(names.empty() ? "" : ",").append(set->name);
  return names;
}

const InstructionSet& instruction_set() {
  const char* wanted = std::getenv("FASTRNN_CPU_ISA");
  for (const InstructionSet* set : kInstructionSets)
    if ((!wanted || set->name == wanted) && set->runs_here()) return *set;
  STD_TORCH_CHECK(false, "fastrnn: FASTRNN_CPU_ISA is '", wanted ? wanted : "", "', expected one of ",
                  instruction_sets(true));
}

bool forked() { return getpid() != kLoadedIn; }

int64_t most_threads() { return forked() ? 1 : torch::stable::get_num_threads(); }

}  // namespace fastrnn::cpu
