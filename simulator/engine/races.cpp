#include "races.h"

#include <algorithm>
#include <bit>

#include "machine.h"

namespace sim {

RaceState the_race_state;

namespace {

RaceState& state = the_race_state;

uint32_t thread_of(uint64_t access) { return access >> 6 & (kThreadLimit - 1); }
bool is_split(const Cell& cell) { return cell.write >= kSplit; }

uint64_t group_key(Group group, uint32_t number) { return static_cast<uint64_t>(group) | number; }

// Own block's and warp's marks live in the clock, all else in its view of others.
bool has_seen(const Fiber& f, uint64_t access) {
  const uint32_t tick = tick_of(access), thread = thread_of(access);
  if (tick <= state.launch_start || thread == f.thread.index) return true;
  const uint32_t block_threads = current->warps * 32;
  if (thread - f.thread.block->linear * block_threads < block_threads) {
    if (tick <= f.clock.block_seen) return true;
    if (thread / 32 == f.thread.index / 32 && tick <= f.clock.warp_seen) return true;
  }
  if (!f.clock.others) return false;
  const View& others = *f.clock.others;
  const uint32_t block = thread / block_threads;
  return tick <= others.of(Group::block, block) || tick <= others.of(Group::warp, thread / 32) ||
         tick <= others.of(Group::thread, thread);
}

// Two strong accesses may meet if they are of one size and each is in the other's scope.
bool may_meet(const Fiber& f, uint64_t theirs, uint64_t mine) {
  if (!(theirs & mine & kStrong)) return false;
  if (((theirs ^ mine) >> kSizeShift & 7) != 0) return false;
  if (!((theirs | mine) & kCtaScope)) return true;
  return thread_of(theirs) / (current->warps * 32) == f.thread.block->linear;
}

bool races_with(const Fiber& f, uint64_t theirs, uint64_t mine) {
  return !has_seen(f, theirs) && !may_meet(f, theirs, mine);
}

const Site* site_near(const Site& here, uint32_t low) {
  constexpr uint64_t kSpan = uint64_t{1} << 35;
  const uint64_t present = reinterpret_cast<uint64_t>(&here);
  uint64_t there = (present & ~(kSpan - 1)) | uint64_t{low} << 3;
  if (there > present + kSpan / 2) there -= kSpan;
  if (there + kSpan / 2 < present) there += kSpan;
  return reinterpret_cast<const Site*>(there);
}

std::string describe_thread(uint32_t thread) {
  const Launch& l = *current;
  const uint32_t block = thread / (l.warps * 32), t = thread % (l.warps * 32);
  const auto three = [](uint32_t i, const uint32_t* n) {
    return "(" + std::to_string(i % n[0]) + ", " + std::to_string(i / n[0] % n[1]) + ", " +
           std::to_string(i / n[0] / n[1]) + ")";
  };
  return "block " + three(block, l.request.grid) + " thread " + three(t, l.request.block);
}

[[gnu::noinline]] void report(Fiber& f, const Site& site, uint64_t address, uint64_t theirs, uint64_t mine,
                              bool they_write, bool i_write, uint32_t their_site) {
  const bool shared = address >= kShared && address < kLocal;
  const Site* other = site_near(site, their_site);
  std::string text = std::string(i_write ? "write" : "read") + " of " + (shared ? "shared" : "global") + " word ";
  char hex[32];
  std::snprintf(hex, sizeof hex, "0x%llx",
                static_cast<unsigned long long>(shared ? (address - kShared) % kWindow : address));
  text += hex;
  text += std::string(" is not ordered after the ") + (they_write ? "write" : "read") + " by " +
          describe_thread(thread_of(theirs));
  if (their_site != 0) text += " at " + site_name(*other);
  if (theirs & mine & kStrong)
    text += ((theirs ^ mine) >> kSizeShift & 7) ? "; both are strong, but of different sizes"
                                                : "; both are strong, but one's scope is its block";
  add_finding(shared ? "race in shared memory" : "race in global memory", text, &site, &f);
}

void read_cell(Fiber& f, const Site& site, uint64_t address, Cell& cell, uint64_t mine) {
  if (races_with(f, cell.write, mine)) report(f, site, address, cell.write, mine, true, false, cell.write_site);
  mark_read(cell, site, mine);
}

void write_cell(Fiber& f, const Site& site, uint64_t address, Cell& cell, uint64_t mine) {
  if (races_with(f, cell.write, mine))
    report(f, site, address, cell.write, mine, true, true, cell.write_site);
  else if (races_with(f, cell.read, mine))
    report(f, site, address, cell.read, mine, false, true, cell.read_site);
  else if (races_with(f, cell.other_read, mine))
    report(f, site, address, cell.other_read, mine, false, true, 0);
  cell.write = mine;
  cell.write_site = site_low(site);
}

std::array<Cell, 4>& split_cell(Cell& cell) {
  if (!is_split(cell)) {
    state.split.push_back({cell, cell, cell, cell});
    cell.write = kSplit | (state.split.size() - 1);
  }
  return state.split[cell.write & 0xFFFFFFFF];
}

// Calls visit(address, cell) for each cell the access covers.
template <class F>
void for_cells(uint64_t address, int n, F visit) {
  const uint64_t end = address + n;
  while (address < end) {
    Cell& cell = *cells(address);
    if (address % 4 == 0 && end - address >= 4 && !is_split(cell)) [[likely]] {
      visit(address, cell);
      address += 4;
      continue;
    }
    std::array<Cell, 4>& parts = split_cell(cell);
    do {
      visit(address, parts[address % 4]);
      ++address;
    } while (address < end && address % 4 != 0);
  }
}

}  // namespace

uint32_t View::of(Group group, uint32_t number) const {
  const uint64_t key = group_key(group, number);
  const auto at = std::lower_bound(seen.begin(), seen.end(), std::pair{key, uint32_t{0}});
  return at != seen.end() && at->first == key ? at->second : 0;
}

void View::raise(Group group, uint32_t number, uint32_t tick) {
  const uint64_t key = group_key(group, number);
  const auto at = std::lower_bound(seen.begin(), seen.end(), std::pair{key, uint32_t{0}});
  if (at != seen.end() && at->first == key)
    at->second = std::max(at->second, tick);
  else
    seen.insert(at, {key, tick});
}

void View::join(const View& other) {
  std::vector<std::pair<uint64_t, uint32_t>> both;
  both.reserve(seen.size() + other.seen.size());
  auto a = seen.begin();
  auto b = other.seen.begin();
  while (a != seen.end() || b != other.seen.end()) {
    if (b == other.seen.end() || (a != seen.end() && a->first < b->first)) {
      both.push_back(*a++);
    } else if (a == seen.end() || b->first < a->first) {
      both.push_back(*b++);
    } else {
      both.push_back({a->first, std::max(a->second, b->second)});
      ++a, ++b;
    }
  }
  seen = std::move(both);
}

void start_launch_clock() { state.launch_start = state.tick++; }

void end_launch_clock() {
  for (const auto& [address, published] : state.published)
    for (int i = 0; i < 4; ++i) states(address)[i] &= ~kSync;
  state.published.clear();
}

void start_thread_clock(Fiber& f, uint32_t block_start) {
  f.clock = ThreadClock{};
  f.clock.block_seen = f.clock.warp_seen = block_start;
  f.clock.now = block_start + 1;
}

void read_words(Fiber& f, const Site& site, uint64_t address, int n, uint64_t mine) {
  for_cells(address, n, [&](uint64_t at, Cell& cell) { read_cell(f, site, at, cell, mine); });
}

void write_words(Fiber& f, const Site& site, uint64_t address, int n, uint64_t mine) {
  for_cells(address, n, [&](uint64_t at, Cell& cell) { write_cell(f, site, at, cell, mine); });
}

void release_fence(Fiber& f, Scope scope) {
  auto view = std::make_shared<View>();
  if (f.clock.others) view->seen = f.clock.others->seen;
  view->raise(Group::block, f.thread.block->linear, f.clock.block_seen);
  view->raise(Group::warp, f.thread.index / 32, f.clock.warp_seen);
  view->raise(Group::thread, f.thread.index, f.clock.now);
  view->cta_only = scope == Scope::cta;
  view->block = f.thread.block->linear;
  f.clock.released = std::move(view);
  f.clock.now = ++state.tick;
}

void acquire_fence(Fiber& f) {
  if (!f.clock.pending) return;
  const View& view = *f.clock.pending;
  f.clock.block_seen = std::max(f.clock.block_seen, view.of(Group::block, f.thread.block->linear));
  f.clock.warp_seen = std::max(f.clock.warp_seen, view.of(Group::warp, f.thread.index / 32));
  if (!f.clock.others) {
    f.clock.others = f.clock.pending;
  } else if (f.clock.others != f.clock.pending) {
    auto joined = std::make_shared<View>(*f.clock.others);
    joined->join(view);
    f.clock.others = std::move(joined);
  }
  f.clock.pending.reset();
}

void publish(Fiber& f, uint64_t address, bool keeps) {
  if (!f.clock.released) {
    if (keeps || !(states(address)[0] & kSync)) return;
    state.published.erase(address);
    for (int i = 0; i < 4; ++i) states(address)[i] &= ~kSync;
    return;
  }
  Published& published = state.published[address];
  if (keeps && published.view && published.view != f.clock.released) {
    auto joined = std::make_shared<View>(*published.view);
    joined->join(*f.clock.released);
    joined->cta_only = published.view->cta_only && f.clock.released->cta_only;
    published.view = std::move(joined);
  } else {
    published.view = f.clock.released;
  }
  for (int i = 0; i < 4; ++i) states(address)[i] |= kSync;
}

void observe(Fiber& f, uint64_t address) {
  if (!(states(address)[0] & kSync)) return;
  const auto at = state.published.find(address);
  if (at == state.published.end()) return;
  const Seen& view = at->second.view;
  if (view->cta_only && view->block != f.thread.block->linear) return;
  if (!f.clock.pending) {
    f.clock.pending = view;
  } else if (f.clock.pending != view) {
    auto joined = std::make_shared<View>(*f.clock.pending);
    joined->join(*view);
    f.clock.pending = std::move(joined);
  }
}

// A whole block or warp that meets is one entry. Others that meet (a named barrier of some warps, a partial mask) learn
// of each other thread by thread, and of each other's warps what those had seen.
void join_clocks(Fiber* const* threads, size_t n, bool whole_block, bool whole_warp) {
  const uint32_t seen = state.tick++;
  Seen joined = threads[0]->clock.others;
  std::shared_ptr<View> own;  // the copy that may be changed
  const auto writable = [&]() -> View& {
    if (!own) joined = own = joined ? std::make_shared<View>(*joined) : std::make_shared<View>();
    return *own;
  };
  uint32_t block_seen = 0;
  const View* last = joined.get();
  for (size_t i = 0; i < n; ++i) {
    const ThreadClock& clock = threads[i]->clock;
    block_seen = std::max(block_seen, clock.block_seen);
    if (clock.others && clock.others.get() != last) writable().join(*clock.others);
    last = clock.others.get();
    if (whole_block || whole_warp) continue;
    writable().raise(Group::thread, threads[i]->thread.index, seen);
    writable().raise(Group::warp, threads[i]->thread.index / 32, clock.warp_seen);
  }
  for (size_t i = 0; i < n; ++i) {
    ThreadClock& clock = threads[i]->clock;
    clock.others = joined;
    clock.block_seen = whole_block ? seen : block_seen;
    if (whole_block || whole_warp) clock.warp_seen = seen;
    clock.now = state.tick;
  }
}

}  // namespace sim
