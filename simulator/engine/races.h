// Races are conflicting accesses that no chain of synchronisation orders, whatever the schedule of this run was.
//
// Clocks are ticks of one counter, taken by whoever synchronises. What a thread has seen is said of groups: "all that
// block b's threads did up to tick c", or warp w's, or one thread's. Barriers give the first kind, __syncwarp the
// second, and a thread that publishes alone (fence and store, release) adds the third, so a grid's worth of threads
// needs a handful of entries instead of a vector of all threads.
//
// A word remembers its last write and two of its last reads, of different warps if there are such: a write that races
// only with earlier readers may go unseen under one seed. Words accessed in parts are kept byte by byte.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine.h"
#include "memory.h"

namespace sim {

// Access: tick << 32 | thread << 6 | flags.
enum AccessFlag : uint32_t {
  kStrong = 1,
  kCtaScope = 2,
  kSizeShift = 2,  // log2 of the element's bytes
  kAtomic = 32,
};
inline constexpr uint32_t kFlagMask = 63, kThreadLimit = 1u << 26;

struct Cell {
  uint64_t write, read, other_read;
  uint32_t write_site, read_site;  // bits 3 to 34 of the Site's address; the rest are those of the present site
};
static_assert(sizeof(Cell) == 32);
inline constexpr uint64_t kSplit = uint64_t{0xFFFFFFFF} << 32;  // Cell::write of a word kept by byte: | index

inline Cell* cells(uint64_t address) {
  return reinterpret_cast<Cell*>(kCells + (address - kMemory) / 4 * sizeof(Cell));
}

// What was seen of others: group -> tick, sorted by group.
enum class Group : uint64_t { block = uint64_t{1} << 60, warp = uint64_t{2} << 60, thread = uint64_t{3} << 60 };
struct View {
  std::vector<std::pair<uint64_t, uint32_t>> seen;
  bool cta_only = false;
  uint32_t block = 0;  // that published, for cta_only
  uint32_t of(Group, uint32_t number) const;
  void raise(Group, uint32_t number, uint32_t tick);
  void join(const View&);
};
using Seen = std::shared_ptr<const View>;

struct ThreadClock {
  uint32_t now = 0, warp_seen = 0, block_seen = 0;
  Seen others;    // beyond the own block and warp
  Seen pending;   // published where this thread read strongly; a fence makes it seen
  Seen released;  // what strong stores publish since the last fence
};

struct Published {
  Seen view;
};

struct RaceState {
  uint32_t tick = 1;
  uint32_t launch_start = 0;  // everything up to this tick is over
  std::unordered_map<uint64_t, Published> published;
  std::vector<std::array<Cell, 4>> split;
};
extern RaceState the_race_state;
inline RaceState& race_state() { return the_race_state; }

void start_launch_clock();
void end_launch_clock();
void start_thread_clock(Fiber&, uint32_t block_start);

// The slow halves: a word whose marks are too new to be dismissed at once, or that is kept byte by byte.
void read_words(Fiber&, const Site&, uint64_t address, int bytes, uint64_t mine);
void write_words(Fiber&, const Site&, uint64_t address, int bytes, uint64_t mine);

inline uint32_t tick_of(uint64_t access) { return access >> 32; }
inline uint32_t site_low(const Site& site) { return static_cast<uint32_t>(reinterpret_cast<uint64_t>(&site) >> 3); }
inline uint64_t access_of(const ThreadClock& clock, uint32_t thread, uint32_t flags) {
  return uint64_t{clock.now} << 32 | uint64_t{thread} << 6 | flags;
}
// Whoever writes at a tick not above this is surely seen: in shared memory only the own block writes.
inline uint32_t surely_seen(const ThreadClock& clock, uint64_t address) {
  return address >= kShared ? clock.block_seen : race_state().launch_start;
}

// Keeps the weaker of two reads at one tick, and a reader of another warp where there is such.
inline void mark_read(Cell& cell, const Site& site, uint64_t mine) {
  if (((cell.read ^ mine) & ~uint64_t{kFlagMask}) == 0) {
    if (cell.read & kStrong) cell.read = mine;
    return;
  }
  const bool other_warp = ((cell.read ^ mine) >> 11 & ((1u << 21) - 1)) != 0;
  if (other_warp || tick_of(cell.other_read) < tick_of(cell.read)) cell.other_read = cell.read;
  cell.read = mine;
  cell.read_site = site_low(site);
}

inline void record_read(const ThreadClock& clock, Fiber& f, uint32_t thread, const Site& site, uint64_t address, int n,
                        uint32_t flags) {
  const uint64_t mine = access_of(clock, thread, flags);
  const uint32_t seen = surely_seen(clock, address);
  if (n < 4) return read_words(f, site, address, n, mine);
  for (const uint64_t end = address + n; address < end; address += 4) {
    Cell& cell = *cells(address);
    if (tick_of(cell.write) <= seen) [[likely]]
      mark_read(cell, site, mine);
    else
      read_words(f, site, address, 4, mine);
  }
}

inline void record_write(const ThreadClock& clock, Fiber& f, uint32_t thread, const Site& site, uint64_t address, int n,
                         uint32_t flags) {
  const uint64_t mine = access_of(clock, thread, flags);
  const uint32_t seen = surely_seen(clock, address);
  if (n < 4) return write_words(f, site, address, n, mine);
  for (const uint64_t end = address + n; address < end; address += 4) {
    Cell& cell = *cells(address);
    if (tick_of(cell.write) <= seen && tick_of(cell.read) <= seen && tick_of(cell.other_read) <= seen) [[likely]] {
      cell.write = mine;
      cell.write_site = site_low(site);
    } else {
      write_words(f, site, address, 4, mine);
    }
  }
}

// Release and acquire, on the address of one element.
void release_fence(Fiber&, Scope);                   // later strong stores publish what was done until here
void acquire_fence(Fiber&);                          // what was read strongly before is seen now
void publish(Fiber&, uint64_t address, bool keeps);  // a strong store; keeps: an atomic, which continues a release
void observe(Fiber&, uint64_t address);              // a strong load
void join_clocks(Fiber* const* threads, size_t n, bool whole_block, bool whole_warp);

}  // namespace sim
