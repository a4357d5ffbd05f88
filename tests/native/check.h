// The native tests share counted checks, threads made by hand and the instruction sets of this machine.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"

namespace fastrnn::test {

inline int checks = 0;
inline int failures = 0;

inline bool check(bool ok, const std::string& what) {
  ++checks;
  if (!ok) {
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
  }
  return ok;
}

inline int finish() {
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}

// Every part has a thread.
inline void fork_threads(int64_t parts, const std::function<void(int64_t, int64_t)>& body) {
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < parts; ++i) threads.emplace_back(body, i, i + 1);
  body(0, 1);
  for (std::thread& thread : threads) thread.join();
}

// Returns this architecture's instruction sets that run here, and names the others.
inline std::vector<const cpu::InstructionSet*> instruction_sets() {
  const std::vector<const cpu::InstructionSet*> built{
#if defined(__x86_64__)
      &cpu::kAmx,   &cpu::kAvx512Bf16, &cpu::kAvx512, &cpu::kAvx2,
#elif defined(__aarch64__)
      &cpu::kNeonBf16,
      &cpu::kNeon,
#endif
      &cpu::kPlain,
  };
  std::vector<const cpu::InstructionSet*> runnable;
  for (const auto* set : built) {
    if (set->runs_here())
      runnable.push_back(set);
    else
      std::printf("SKIPPED %s: this machine does not have it\n", std::string(set->name).c_str());
  }
  return runnable;
}

}  // namespace fastrnn::test
