// Device memory is one reserved region of the host's address space at a fixed address, with two shadows at fixed
// offsets: a byte of state for every byte, and a cell of the race checker for every word. The parts of the region:
// global memory, a window of shared memory for every resident block, local memory of the threads.
#pragma once

#include <cstdint>
#include <map>

#include "engine.h"

namespace sim {

inline constexpr uint64_t kMemory = 0x200000000000, kMemoryBytes = uint64_t{32} << 30;
inline constexpr uint64_t kShared = kMemory + (uint64_t{24} << 30);
inline constexpr uint64_t kLocal = kMemory + (uint64_t{28} << 30);
inline constexpr uint64_t kEnd = kMemory + kMemoryBytes;
inline constexpr uint64_t kStates = 0x210000000000;
inline constexpr uint64_t kCells = 0x220000000000;
inline constexpr uint64_t kWindow = 256 << 10;  // of shared memory; no device gives a block more than 227 KB
inline constexpr uint8_t kUnwritten = 0xCD;     // what memory holds that nothing wrote

enum State : uint8_t {
  kAlive = 1,    // allocated
  kWritten = 2,  // something wrote it
  kSync = 4,     // a release was published here
  kPending = 8,  // destination of a cp.async that no wait has covered
  kFreed = 16,
  kPolled = 32,  // a parked lane polls this
};

inline uint8_t* states(uint64_t address) { return reinterpret_cast<uint8_t*>(kStates + (address - kMemory)); }
inline std::byte* bytes(uint64_t address) { return reinterpret_cast<std::byte*>(address); }

class Heap {
 public:
  Heap();
  uint64_t allocate(uint64_t size);  // 0: out of memory
  bool release(uint64_t address);
  // Block that contains the address, or the nearest one below; for texts of findings.
  struct Extent {
    uint64_t address, size;
    bool live;
  };
  const Extent* near(uint64_t address) const;
  uint64_t live_bytes() const { return live_bytes_; }

 private:
  std::map<uint64_t, Extent> extents_;
  uint64_t cursor_ = kMemory + 65536, live_bytes_ = 0;
};

Heap& heap();

void make_alive(uint64_t address, uint64_t size);  // allocated, unwritten
void mark_written(uint64_t address, uint64_t size);
void make_dead(uint64_t address, uint64_t size, uint8_t state);
// Number of leading bytes that are allocated, and written.
uint64_t alive_prefix(uint64_t address, uint64_t size);
uint64_t written_prefix(uint64_t address, uint64_t size);

void drain_stores(Fiber&);         // all of the thread's buffered stores become visible
void drain_stores_slowly(Fiber&);  // in any order, and others may run in between
bool drain_one_store(Fiber&);      // a random one that may; false: none was left
void finish_async_copies(Fiber&);  // a thread that ends

}  // namespace sim
