// The barrier and the entrance of a team, many times over: best run under the thread sanitizer.
#include <atomic>
#include <chrono>
#include <thread>

#include "check.h"

namespace {
using namespace fastrnn;

// Neighbours write what the next phase reads: a barrier that lets one through early is a race, and a wrong sum.
void check_barriers(int64_t threads) {
  constexpr int64_t kPhases = 2000;
  std::vector<int64_t> values(threads, 0), next(threads, 0);
  const cpu::Team team(threads, test::fork_threads);
  bool ok = true;
  std::atomic<int64_t> wrong{0};
  team.run([&](const cpu::Team::Member& member) {
    for (int64_t phase = 0; phase < kPhases; ++phase) {
      next[member.index] = values[(member.index + 1) % member.count] + 1;
      member.barrier();
      if (next[(member.index + 1) % member.count] != phase + 1) ++wrong;
      values[member.index] = next[member.index];
      member.barrier();
    }
  });
  ok = wrong == 0;
  test::check(ok, std::to_string(threads) + " threads: a barrier let one through");
}

void check_groups() {
  constexpr int64_t kThreads = 4, kPhases = 2000;
  std::vector<int64_t> values(kThreads, 0);
  std::atomic<int64_t> wrong{0};
  cpu::Team(kThreads, test::fork_threads).run([&](const cpu::Team::Member& member) {
    if (member.count != kThreads) return;
    const int64_t group = member.index / 2, partner = member.index ^ 1;
    for (int64_t phase = 1; phase <= kPhases; ++phase) {
      values[member.index] = phase;
      member.barrier(group, 2);
      if (values[partner] != phase) ++wrong;
      member.barrier(group, 2);
    }
  });
  test::check(wrong == 0, "a group's barrier let one through");
}

// A plan may give all work to one member, and nothing to the caller: that is no crowd.
void check_idle_caller() {
  const std::thread::id caller = std::this_thread::get_id();
  cpu::Team(2, test::fork_threads).run([&](const cpu::Team::Member& member) {
    if (std::this_thread::get_id() == caller) return member.sit_out();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    member.barrier();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // the caller has ended its part
  });
  test::check(!cpu::is_crowded(), "a caller without work is taken for one that is held up");
}

// A team whose caller waits for others longer than it works is held up, as by programs that take its cores.
void check_crowd() {
  const std::thread::id caller = std::this_thread::get_id();
  cpu::Team(2, test::fork_threads).run([&](const cpu::Team::Member& member) {
    for (int64_t step = 0; step < 4; ++step) {
      if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      member.barrier();
    }
  });
  test::check(cpu::is_crowded(), "a team that was held up does not say so");
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  test::check(!cpu::is_crowded(), "a team that was held up says so for ever");
}

// Every share of the work is done once, whatever the runtime brings.
void check_shares(int64_t threads, cpu::Team::Fork fork, const char* what) {
  std::vector<std::atomic<int>> done(1000);
  cpu::Team(threads, fork).run([&](const cpu::Team::Member& member) {
    const cpu::Range mine = member.share(static_cast<int64_t>(done.size()));
    for (int64_t i = mine.begin; i < mine.end; ++i) ++done[i];
  });
  bool once = true;
  for (const auto& count : done) once = once && count == 1;
  test::check(once, std::string(what) + ": work is done other than once");
}
}  // namespace

int main() {
  check_idle_caller();  // before others that may be held up
  check_crowd();
  for (const int64_t threads : {1, 2, 3, 8}) check_barriers(threads);
  check_groups();
  for (int i = 0; i < 20; ++i) {
    check_shares(5, test::fork_threads, "a thread each");
    check_shares(5, [](int64_t parts, const auto& body) { body(0, parts); }, "one thread");
    check_shares(
        5,
        [](int64_t parts, const auto& body) {
          std::thread other([&] { body(2, parts); });
          body(0, 2);
          other.join();
        },
        "two threads for five parts");
  }
  check_shares(
      3,
      [](int64_t parts, const auto& body) {
        for (int64_t i = 0; i < parts; ++i) body(i, i + 1);
      },
      "parts in turn");
  return test::finish();
}
