// Where threads meet: lanes in warp collectives, warps at barriers. Whoever comes last does the work for all, on its
// own fiber; the others only wait. A lane that has ended counts as arrived.
#include <algorithm>
#include <bit>

#include "machine.h"
#include "memory.h"

namespace sim {
namespace {

bool same_meeting(const Fiber& a, const Fiber& b) {
  return a.wait == Wait::collective && b.wait == Wait::collective && a.kind == b.kind && a.mask == b.mask;
}

// Backward branches of a thread since its warp met: lanes that have taken unequal numbers left a loop apart.
uint64_t branches_apart(const Fiber& f) { return f.branches - f.thread.branches_left - f.converged_at; }
void converge(Fiber& f) { f.converged_at = f.branches - f.thread.branches_left; }

// Runs the collective `f` takes part in if all have arrived.
bool try_collective(Fiber& f) {
  Warp& warp = *f.thread.group;
  const uint32_t expected = f.mask & warp.alive;
  uint32_t arrived = 0;
  void* operands[32] = {};
  Fiber* members[32];
  size_t n = 0;
  for (uint32_t rest = expected; rest != 0; rest &= rest - 1) {
    Fiber& other = warp.lanes[std::countr_zero(rest)];
    if (!same_meeting(f, other)) continue;
    arrived |= rest & -rest;
    operands[other.thread.lane] = other.operands;
    members[n++] = &other;
  }
  if (arrived != expected) return false;
  for (size_t i = 0; i < n; ++i) {
    if (!members[i]->aligned) continue;
    if (members[i]->stopped_at != f.stopped_at)
      abort_launch(*members[i], *members[i]->stopped_at, 719, "divergent warp instruction",
                   "lanes of a warp meet in an .aligned instruction at different places; lane " +
                       std::to_string(f.thread.lane) + " at " + site_name(*f.stopped_at));
    if (branches_apart(*members[i]) != branches_apart(f)) {
      add_finding("divergent warp instruction",
                  "lanes of a warp have left a loop apart and not met since; lane " +
                      std::to_string(members[i]->thread.lane) + " after " +
                      std::to_string(branches_apart(*members[i])) + " branches back, lane " +
                      std::to_string(f.thread.lane) + " after " + std::to_string(branches_apart(f)),
                  f.stopped_at, &f);
      break;
    }
  }
  if (f.kind == kWarpSync) {
    for (size_t i = 0; i < n; ++i) converge(*members[i]);
    for (size_t i = 0; i < n; ++i) drain_stores(*members[i]);
    if (machine().settings.races) join_clocks(members, n, false, expected == warp.alive);
  }
  if (expected == warp.alive && warp.lanes[std::countr_zero(expected)].trace.size() >= kTraceLimit / 4)
    settle_traffic(warp);
  f.body(f.compute, operands, arrived);
  ++current->progress;
  for (size_t i = 0; i < n; ++i) wake(*members[i]);
  return true;
}

bool is_member(const std::vector<Fiber*>& list, const Fiber* f) {
  return std::find(list.begin(), list.end(), f) != list.end();
}

// A barrier over the block is complete when every thread alive is there.
bool try_barrier(Block& block, BarrierState& state) {
  const size_t expected = state.count < 0 ? block.alive : state.count;
  if (state.waiting.size() + state.arrived.size() < expected) return false;
  uint32_t sum = 0;
  bool all = true;
  for (const Fiber* f : state.waiting) {
    sum += f->predicate;
    all &= f->predicate;
  }
  const uint32_t answer = state.reduce == kReducePopc ? sum : state.reduce == kReduceAnd ? all : sum > 0;
  std::vector<Fiber*> waiting = std::move(state.waiting), arrived = std::move(state.arrived);
  const bool whole = state.count < 0 || expected == block.alive;
  state = BarrierState{};
  if (machine().settings.races && !waiting.empty()) {
    std::vector<Fiber*> members = waiting;
    // What those that only arrive do afterwards is not ordered; they wrote before, so their present tick must end here.
    for (Fiber* f : arrived)
      if (!is_member(members, f)) members.push_back(f);
    const std::vector<ThreadClock> before = [&] {
      std::vector<ThreadClock> clocks;
      for (Fiber* f : arrived) clocks.push_back(f->clock);
      return clocks;
    }();
    join_clocks(members.data(), members.size(), whole, false);
    for (size_t i = 0; i < arrived.size(); ++i)
      if (!is_member(waiting, arrived[i])) {
        const uint32_t now = arrived[i]->clock.now;
        arrived[i]->clock = before[i];
        arrived[i]->clock.now = now;
      }
  }
  ++current->progress;
  for (Fiber* f : waiting) {
    converge(*f);
    f->answer = answer;
    wake(*f);
  }
  return true;
}

uint32_t meet_at_barrier(Thread& t, const Site& site, int id, int count, int reduce, bool predicate, bool wait) {
  Fiber& f = *t.fiber;
  Block& block = *t.block;
  if (id < 0 || id > 15) abort_launch(f, site, 719, "invalid barrier", "barrier " + std::to_string(id) + " of 16");
  if (count == 0 || (count > 0 && (count % 32 != 0 || count > int(current->warps * 32))))
    abort_launch(f, site, 719, "invalid barrier",
                 "it counts " + std::to_string(count) + " threads of a block of " + std::to_string(current->threads));
  t.counters[static_cast<int>(Counter::barriers)] += 1;
  drain_stores_slowly(f);
  BarrierState& state = block.barriers[id];
  if (state.count != 0 && (state.count != count || (state.reduce != reduce && wait)))
    abort_launch(f, site, 719, "divergent barrier",
                 "threads wait at barrier " + std::to_string(id) + " with another count or operation");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const Fiber& other = t.group->lanes[lane];
    if (other.wait == Wait::barrier && other.kind == id && other.stopped_at != &site)
      abort_launch(f, site, 719, "divergent barrier",
                   "lanes of a warp wait at different places; lane " + std::to_string(lane) + " at " +
                       site_name(*other.stopped_at));
  }
  state.count = count;
  if (wait) state.reduce = reduce;
  f.kind = id;
  f.predicate = predicate;
  f.stopped_at = &site;
  if (!wait) {
    state.arrived.push_back(&f);
    try_barrier(block, state);
    return 0;
  }
  state.waiting.push_back(&f);
  if (!try_barrier(block, state)) wait_here(f, site, Wait::barrier);
  return f.answer;
}

}  // namespace

void collective_meet(Thread& t, const Site& site, int kind, uint32_t mask, bool aligned, void* mine, void* compute,
                     CollectiveBody body) {
  Fiber& f = *t.fiber;
  t.counters[static_cast<int>(Counter::collectives)] += 1;
  if (!(mask >> t.lane & 1)) {
    char text[96];
    std::snprintf(text, sizeof text, "lane %u is not in its own mask 0x%08x", t.lane, mask);
    abort_launch(f, site, 719, "invalid mask", text);
  }
  f.kind = kind;
  f.mask = mask;
  f.aligned = aligned;
  f.operands = mine;
  f.compute = compute;
  f.body = body;
  f.stopped_at = &site;
  f.wait = Wait::collective;
  if (!try_collective(f)) wait_here(f, site, Wait::collective);
}

// Which lanes are together is nowhere written in the program, so the question is put off until no lane of the warp can
// run on: those that have asked at one place are together. Answered earlier, a vote over the mask might deadlock.
uint32_t activemask(Thread& t, const Site& site) {
  wait_here(*t.fiber, site, Wait::activemask);
  return t.fiber->answer;
}

void answer_activemask(Warp& warp) {
  for (uint32_t first = 0; first < 32; ++first) {
    Fiber& f = warp.lanes[first];
    if (f.wait != Wait::activemask) continue;
    uint32_t together = 0;
    for (uint32_t lane = first; lane < 32; ++lane) {
      const Fiber& other = warp.lanes[lane];
      if (other.wait == Wait::activemask && other.stopped_at == f.stopped_at) together |= 1u << lane;
    }
    for (uint32_t rest = together; rest != 0; rest &= rest - 1) {
      Fiber& other = warp.lanes[std::countr_zero(rest)];
      other.answer = together;
      wake(other);
    }
    ++current->progress;
  }
}

void barrier(Thread& t, const Site& site, int id, int count, bool wait) {
  meet_at_barrier(t, site, id, count, -1, false, wait);
}

uint32_t barrier_reduce(Thread& t, const Site& site, int id, int count, int op, bool predicate) {
  return meet_at_barrier(t, site, id, count, op, predicate, true);
}

void leave_meetings(Fiber& f) {
  Block& block = *f.thread.block;
  for (BarrierState& state : block.barriers)
    if (state.count < 0 && !state.waiting.empty()) {
      add_finding("divergent barrier",
                  thread_name(*state.waiting[0]) + " waits at a barrier of the whole block which " + thread_name(f) +
                      " has not reached before its end",
                  state.waiting[0]->stopped_at, state.waiting[0]);
      try_barrier(block, state);
    }
  Warp& warp = *f.thread.group;
  for (uint32_t lane = 0; lane < 32; ++lane)
    if (warp.lanes[lane].wait == Wait::collective) try_collective(warp.lanes[lane]);
}

}  // namespace sim
