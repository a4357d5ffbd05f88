// How the threads of a team wait for each other.
#include "cpu/team.h"

#include <chrono>
#include <thread>

namespace fastrnn::cpu {
namespace {

// Waits for a condition that another thread is about to make true. After a while it lets others run: there may be
// more threads than cores.
template <class Condition>
void spin_until(Condition&& condition) {
  constexpr int kSpins = 2000;
  for (int i = 0; !condition(); ++i) {
    if (i > kSpins)
      std::this_thread::yield();
    else
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#else
      std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
  }
}

}  // namespace

void Barrier::wait(int64_t count) {
  if (count == 1) return;
  const int64_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

std::optional<int64_t> Team::Entrance::enter(int64_t parts) {
  constexpr std::chrono::milliseconds kPatience{20};
  State before = state_.load();
  State after;
  do {
    if (before.parts_missing == 0) return std::nullopt;
    after = {before.members + 1, before.parts_missing - static_cast<int32_t>(parts)};
  } while (!state_.compare_exchange_weak(before, after));
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  spin_until([&] {
    State now = state_.load();
    if (now.parts_missing == 0) return true;
    if (std::chrono::steady_clock::now() < deadline) return false;
    return state_.compare_exchange_strong(now, {now.members, 0});
  });
  return before.members;
}

}  // namespace fastrnn::cpu
