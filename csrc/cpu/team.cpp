// How the threads of a team wait for each other.
#include "cpu/team.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace fastrnn::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// This thread has waited so long for others, beyond a spin, and its last part in a team ended then.
thread_local Clock::duration waited{};
thread_local Clock::time_point part_ended{};

// Waits for a condition that another thread is about to make true. After a while it lets others run: there may be
// more threads than cores.
template <class Condition>
void spin_until(Condition&& condition) {
  constexpr int kSpins = 2000;
  for (int i = 0; !condition(); ++i) {
    if (i > kSpins) {
      const Clock::time_point start = Clock::now();
      while (!condition()) std::this_thread::yield();
      waited += Clock::now() - start;
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
  }
}

// A team that was held up sends the next ones to one thread for so long, twice as long each time, where teams have
// lately lost a quarter of their time so. One alone may have come beside another library's threads, which spin for a
// few milliseconds after their work. Of two programs that share the cores, each loses half.
constexpr Clock::duration kLeastPause = std::chrono::milliseconds(100), kLongestPause = std::chrono::seconds(10);

std::atomic<Clock::rep> crowded_until{0};
std::atomic<Clock::rep> next_pause{kLeastPause.count()};

// The time that teams took lately, and lost: beyond kMemory, half of it is forgotten. A program begins as one that lost
// nothing. Two teams that end at once may forget one of them.
constexpr Clock::duration kMemory = std::chrono::milliseconds(40);
std::atomic<Clock::rep> taken_lately{kMemory.count() / 2}, lost_lately{0};

// Adds a team's time to it, and returns whether a quarter of all is lost.
bool lose_much(Clock::duration taken, Clock::duration lost) {
  Clock::rep all = taken_lately + taken.count(), lost_of_it = lost_lately + lost.count();
  if (all > kMemory.count()) {
    all /= 2;
    lost_of_it /= 2;
  }
  taken_lately = all;
  lost_lately = lost_of_it;
  return 4 * lost_of_it >= all;
}

}  // namespace

bool is_crowded() { return Clock::now().time_since_epoch().count() < crowded_until.load(std::memory_order_relaxed); }

PartWatch::~PartWatch() { part_ended = Clock::now(); }

TeamWatch::TeamWatch() : start_(Clock::now()), waited_before_(waited) {}

TeamWatch::~TeamWatch() {
  constexpr Clock::duration kWorthIt = std::chrono::milliseconds(1);
  const Clock::time_point now = Clock::now();
  const bool took_part = part_ended > start_;  // else others came and went before this thread
  const Clock::duration whole = (took_part ? part_ended : now) - start_;
  const Clock::duration lost = took_part ? waited - waited_before_ : whole;
  if (!lose_much(whole, lost))
    next_pause = kLeastPause.count();
  else if (lost >= kWorthIt && 2 * lost >= whole) {
    const Clock::rep pause = next_pause;
    next_pause = std::min(2 * pause, kLongestPause.count());
    crowded_until = now.time_since_epoch().count() + pause;
  }
}

// Arrivals at a node are read-modify-writes of one counter: the last one reads what the others released, and takes it
// upwards. So the root's last arrival has acquired the writes of all members, and the phase releases them to all. The
// counters are cleared before that release, and nobody arrives anew before having acquired it.
void BarrierLine::meet(BarrierLine* lines, int64_t member, int64_t members) {
  if (members == 1) return;
  std::atomic<int64_t>& phase = lines->phase;
  const int64_t before = phase.load(std::memory_order_relaxed);
  BarrierLine* nodes = members <= kFanIn ? lines : lines + 1;
  while (members > 1) {
    const int64_t node = member / kFanIn;
    const int64_t expected = std::min(kFanIn, members - node * kFanIn);
    if (nodes[node].arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < expected)
      return spin_until([&] { return phase.load(std::memory_order_acquire) != before; });
    nodes[node].arrived.store(0, std::memory_order_relaxed);
    member = node;
    members = (members + kFanIn - 1) / kFanIn;
    nodes += members;
  }
  phase.store(before + 1, std::memory_order_release);
}

void Team::Member::sit_out() const {
  const Clock::duration before = waited;
  barrier();
  waited = before;
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
