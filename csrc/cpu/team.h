// The threads of one call. A call forks and joins once, and its barriers spin, since a step lasts only microseconds.
//
// A runtime may bring fewer threads than asked for, or hand several parts to one (nested regions do). So members count
// themselves as they come, and the work is shared among those that came. Results never depend on how many they are.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

namespace fastrnn::cpu {

// The part of `total` items that part `part` of `parts` owns.
struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

inline Range share(int64_t total, int64_t part, int64_t parts) {
  return {total * part / parts, total * (part + 1) / parts};
}

// A line of a barrier, at which threads arrive in a tree: the last to arrive at a node goes on to the node above, and
// the last at the root begins the next phase, for which all others wait. A barrier of n members takes at most n lines.
//
// Up to kFanIn arrivals at a node move its line from core to core, one after another: f log_f(n) moves, which f = 2 and
// 4 make the same number and 3 hardly fewer. 4 needs the fewest levels, and those are all that the last thread passes.
// The phase has a line that nobody arrives at, so that no arrival takes it from the threads that read it over and over.
// A tree of one node is an exception: there the last to arrive owns the line already, and up to three others read it.
struct alignas(128) BarrierLine {  // Intel's chips fetch 64 bytes and the neighbouring 64; Apple's lines are of 128
  static constexpr int64_t kFanIn = 4;

  std::atomic<int64_t> arrived{0};
  std::atomic<int64_t> phase{0};  // of the barrier's first line

  // Waits for all members of the barrier that begins at a line. What any of them wrote before, all read after.
  static void meet(BarrierLine* lines, int64_t member, int64_t members);
};

// Where other programs use the cores, a thread that waits for its core holds up the others at every barrier: for
// milliseconds, where a step takes microseconds. One thread alone is then faster, and gives the same bits. Tells
// whether teams were held up lately.
bool is_crowded();

// Notes when this thread's part in a team ends.
struct PartWatch {
  ~PartWatch();
};

// Watches a thread that calls a team: where it waits for half of its part in the call, it is crowded. What comes after
// that part is no sign: the plan may give it to others.
class TeamWatch {
 public:
  TeamWatch();
  ~TeamWatch();

 private:
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::duration waited_before_;
};

class Team {
 public:
  // Calls body(begin, end) for ranges that make up [0, parts), in parallel if it can.
  using Fork = void (*)(int64_t parts, const std::function<void(int64_t begin, int64_t end)>& body);

  struct Member {
    int64_t index;  // below count
    int64_t count;
    BarrierLine* lines;  // [2 * count]: the team's, then `size` for each group

    void barrier() const { BarrierLine::meet(lines, index, count); }
    // The same for a member that has nothing to do meanwhile: it is not held up.
    void sit_out() const;
    // Waits for the `size` members of a group, those from group * size on. All groups of a run have one size.
    void barrier(int64_t group, int64_t size) const {
      BarrierLine::meet(lines + count + group * size, index - group * size, size);
    }
    Range share(int64_t total) const { return cpu::share(total, index, count); }
  };

  Team(int64_t threads, Fork fork) : threads_(threads), fork_(fork) {}
  int64_t threads() const { return threads_; }  // at most so many members come

  // Runs body(const Member&) on every thread that comes. It must not throw: the others would wait forever.
  template <class Body>
  void run(Body&& body) const {
    if (threads_ == 1) return body(Member{0, 1, nullptr});  // nobody waits at its barriers
    const TeamWatch watch;
    const auto lines = std::make_unique<BarrierLine[]>(2 * threads_);
    Entrance entrance(threads_);
    fork_(threads_, [&](int64_t begin, int64_t end) noexcept {
      if (const std::optional<int64_t> index = entrance.enter(end - begin)) {
        const PartWatch part;
        body(Member{*index, entrance.count(), lines.get()});
      }
    });
  }

 private:
  // Closes when all parts are accounted for, or after a while without them: a part that the runtime starts only when
  // another has ended finds the door closed, and nothing left to do.
  class Entrance {
   public:
    explicit Entrance(int64_t parts) : state_(State{0, static_cast<int32_t>(parts)}) {}

    // The index of a new member that answers for so many parts, once all are here; nothing when it came too late.
    std::optional<int64_t> enter(int64_t parts);
    int64_t count() const { return state_.load().members; }

   private:
    struct State {
      int32_t members;
      int32_t parts_missing;  // 0: closed
    };
    std::atomic<State> state_;
  };

  int64_t threads_;
  Fork fork_;
};

}  // namespace fastrnn::cpu
