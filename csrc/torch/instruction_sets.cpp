#include "torch/instruction_sets.h"

#include <pthread.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>

namespace fastrnn::cpu {
namespace {

const InstructionSet& find(std::string_view wanted) {
  const InstructionSet* set = find_instruction_set(wanted);
  STD_TORCH_CHECK(set, "fastrnn: FASTRNN_CPU_ISA or a program asks for '", std::string(wanted), "', expected one of ",
                  instruction_sets(true));
  return *set;
}

std::atomic<const InstructionSet*> chosen{nullptr};  // null: at the next call, as the environment says
std::atomic<bool> asked_for{false};

std::atomic<bool> in_child{false};
const int kWatchesForks = pthread_atfork(nullptr, nullptr, [] { in_child = true; });

}  // namespace

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
