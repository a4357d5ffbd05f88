// The barrier and the entrance of a team, many times over: best run under the thread sanitizer.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "check.h"

namespace {
using namespace fastrnn;

// The members of each group of a team count phases, and each reads the counts of all of its group: a barrier that lets
// one through early is a race, and a wrong count. Members are made by hand, as an entrance does not wait for all of 64.
void check_barriers(int64_t threads, int64_t size, int64_t phases) {
  const auto lines = std::make_unique<cpu::BarrierLine[]>(2 * threads);
  std::vector<int64_t> counts(threads, 0);
  std::atomic<int64_t> wrong{0};
  test::fork_threads(threads, [&](int64_t index, int64_t) {
    const cpu::Team::Member member{index, threads, lines.get()};
    const int64_t group = index / size, begin = group * size, end = begin + size;
    for (int64_t phase = 1; phase <= phases; ++phase) {
      ++counts[index];
      if (size == threads)
        member.barrier();
      else if (end <= threads)
        member.barrier(group, size);
      for (int64_t i = begin; i < end && end <= threads; ++i) wrong += counts[i] != phase;
      member.barrier();  // of all, whatever their group does
    }
  });
  test::check(wrong == 0, std::to_string(threads) + " threads in groups of " + std::to_string(size) +
                              ": a barrier let one through");
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

// Runs a team whose members all sleep, or else all but the caller, which waits for them.
void run_team(std::chrono::milliseconds sleep, bool all) {
  const std::thread::id caller = std::this_thread::get_id();
  cpu::Team(2, test::fork_threads).run([&](const cpu::Team::Member& member) {
    if (all || std::this_thread::get_id() != caller) std::this_thread::sleep_for(sleep);
    member.barrier();
  });
}

// Teams whose callers wait for others longer than they work are held up, as by programs that take their cores.
void check_crowd() {
  constexpr std::chrono::milliseconds kBrief{4}, kLong{100};
  run_team(kLong, true);
  run_team(kBrief, false);
  test::check(!cpu::is_crowded(), "one team that was held up for a little makes a crowd");
  for (int i = 0; i < 20 && !cpu::is_crowded(); ++i) run_team(kBrief, false);
  test::check(cpu::is_crowded(), "teams that were held up do not say so");
  std::this_thread::sleep_for(std::chrono::milliseconds(250));
  test::check(!cpu::is_crowded(), "teams that were held up say so for ever");
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
  // Threads without a core of their own yield at every phase, which takes milliseconds of 64 threads.
  for (const int64_t threads : {1, 2, 3, 8, 16, 64})
    check_barriers(threads, threads, 100 + 18000 / (threads * threads));
  for (const int64_t threads : {4, 16})
    for (int64_t size = 1; size <= threads; ++size) check_barriers(threads, size, 400 / threads);
  for (const int64_t size : {2, 3, 5, 16, 17, 21, 32, 63}) check_barriers(64, size, 5);
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
