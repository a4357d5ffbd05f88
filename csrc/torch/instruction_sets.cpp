#include "torch/instruction_sets.h"

#include <pthread.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <atomic>
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

const InstructionSet& find(std::string_view wanted) {
  for (const InstructionSet* set : kInstructionSets)
    if ((wanted.empty() || set->name == wanted) && set->runs_here()) return *set;
  STD_TORCH_CHECK(false, "fastrnn: FASTRNN_CPU_ISA or a program asks for '", std::string(wanted), "', expected one of ",
                  instruction_sets(true));
}

std::atomic<const InstructionSet*> chosen{nullptr};  // null: at the next call, as the environment says
std::atomic<bool> asked_for{false};

std::atomic<bool> in_child{false};
const int kWatchesForks = pthread_atfork(nullptr, nullptr, [] { in_child = true; });

}  // namespace

std::string instruction_sets(bool here) {
  std::string names;
  for (const InstructionSet* set : kInstructionSets)
    if (set->runs_here() == here) names.append(names.empty() ? "" : ",").append(set->name);
  return names;
}

const InstructionSet& instruction_set() {
  const InstructionSet* set = chosen.load(std::memory_order_relaxed);
  if (!set) {
    const char* wanted = std::getenv("FASTRNN_CPU_ISA");
    set = &find(wanted ? wanted : "");
    asked_for = wanted != nullptr;
    chosen = set;
  }
  return *set;
}

bool instruction_set_was_asked_for() { return asked_for; }

void use_instruction_set(std::string name) {
  chosen = name.empty() ? nullptr : &find(name);
  asked_for = !name.empty();
}

bool forked() { return in_child.load(std::memory_order_relaxed); }

int64_t most_threads() { return forked() ? 1 : torch::stable::get_num_threads(); }

}  // namespace fastrnn::cpu
