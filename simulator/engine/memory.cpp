#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>

#include "machine.h"
#include "races.h"

namespace sim {
namespace {

constexpr uint64_t kGuard = 4096;  // never allocated, after every block
constexpr uint32_t kStoreBuffer = 8;

void reserve(uint64_t address, uint64_t size) {
  void* const at = reinterpret_cast<void*>(address);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
  if (mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0) != at) {
    std::perror("simulator: cannot reserve the device's memory");
    std::abort();
  }
}

std::string hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string describe_address(const Fiber& f, uint64_t address) {
  if (address >= kShared && address < kLocal)
    return "byte " + std::to_string((address - kShared) % kWindow) + " of shared memory (the block has " +
           std::to_string(current->shared_bytes) + ")";
  if (address >= kLocal && address < kEnd)
    return "byte " + std::to_string(int64_t(address - f.thread.local_base)) + " of local memory (a thread has " +
           std::to_string(current->request.kernel->local_bytes) + ")";
  if (const Heap::Extent* extent = heap().near(address))
    return "address " + hex(address) + ", byte " + std::to_string(address - extent->address) + " of a " +
           (extent->live ? "" : "freed ") + "block of " + std::to_string(extent->size);
  return "address " + hex(address);
}

const char* direction(bool write) { return write ? "write" : "read"; }

[[noreturn, gnu::noinline]] void fail_access(Fiber& f, const Site& site, uint64_t address, int n, bool write) {
  const bool inside = address >= kMemory && address - kMemory < kMemoryBytes - n;
  bool freed = false;
  if (inside)
    for (int i = 0; i < n; ++i) freed |= states(address + i)[0] & kFreed;
  abort_launch(
      f, site, 700, freed ? "use after free" : "out of bounds",
      std::string(direction(write)) + " of " + std::to_string(n) + " bytes at " + describe_address(f, address));
}

[[noreturn, gnu::noinline]] void fail_alignment(Fiber& f, const Site& site, uint64_t address, int n, bool write) {
  abort_launch(
      f, site, 716, "misaligned",
      std::string(direction(write)) + " of " + std::to_string(n) + " bytes at " + describe_address(f, address));
}

void check_place(Fiber& f, const Site& site, uint64_t address, int n, bool write) {
  if (address < kMemory || address - kMemory > kMemoryBytes - n) fail_access(f, site, address, n, write);
  if (address & (n - 1)) fail_alignment(f, site, address, n, write);
  if (address < kShared) return;
  if (address < kLocal) {
    if (address - f.thread.shared_base >= kWindow)
      abort_launch(f, site, 700, "out of bounds", std::string(direction(write)) + " of another block's shared memory");
    return;
  }
  const uint64_t size = current->request.kernel->local_bytes;
  if (address - f.thread.local_base >= size || address - f.thread.local_base + n > size)
    fail_access(f, site, address, n, write);
}

// What the state bytes say against a read, once they are not plainly "allocated and written".
[[gnu::noinline]] void check_read_state(Fiber& f, const Site& site, uint64_t address, int n) {
  uint8_t all = 0xFF, any = 0;
  for (int i = 0; i < n; ++i) {
    all &= states(address)[i];
    any |= states(address)[i];
  }
  if (!(all & kAlive)) fail_access(f, site, address, n, false);
  if (any & kPending)
    add_finding("read before cp.async wait",
                "read of " + describe_address(f, address) + ", destination of a cp.async no wait has covered", &site,
                &f);
  else if (!(all & kWritten))
    add_finding("uninitialised read",
                "read of " + std::to_string(n) + " bytes at " + describe_address(f, address) + ", which nothing wrote",
                &site, &f);
}

[[gnu::noinline]] void check_write_state(Fiber& f, const Site& site, uint64_t address, int n) {
  uint8_t all = 0xFF, any = 0;
  for (int i = 0; i < n; ++i) {
    all &= states(address)[i];
    any |= states(address)[i];
  }
  if (!(all & kAlive)) fail_access(f, site, address, n, true);
  if (any & kPending)
    add_finding("write before cp.async wait",
                "write to " + describe_address(f, address) + ", destination of a cp.async no wait has covered", &site,
                &f);
}

template <int Bytes>
using Bits =
    std::conditional_t<Bytes == 1, uint8_t,
                       std::conditional_t<Bytes == 2, uint16_t, std::conditional_t<Bytes == 4, uint32_t, uint64_t>>>;

template <int Bytes, class F>
bool all_bits(uint64_t address, F test) {
  if constexpr (Bytes == 16) {
    return all_bits<8>(address, test) && all_bits<8>(address + 8, test);
  } else {
    Bits<Bytes> value;
    std::memcpy(&value, states(address), Bytes);
    return test(value);
  }
}

template <class T>
constexpr T repeated(uint8_t byte) {
  return static_cast<T>(0x0101010101010101ull * byte);
}

template <int Bytes>
bool plainly_readable(uint64_t address) {
  return all_bits<Bytes>(address, []<class T>(T value) { return value == repeated<T>(kAlive | kWritten); });
}
template <int Bytes>
bool plainly_writable(uint64_t address) {
  return all_bits<Bytes>(address, []<class T>(T value) {
    return (value & repeated<T>(static_cast<uint8_t>(~(kWritten | kSync | kPolled)))) == repeated<T>(kAlive);
  });
}

// Something changed that lanes poll: the next round runs them.
void wake_pollers(uint64_t address) {
  if (!(states(address)[0] & kPolled)) return;
  const auto at = current->pollers.find(address / 16);
  if (at == current->pollers.end()) return;
  for (Fiber* f : at->second) {
    f->thread.group->parked &= ~(1u << f->thread.lane);
    f->thread.group->skip = 0;
  }
  current->pollers.erase(at);
  for (uint64_t i = address / 16 * 16; i < address / 16 * 16 + 16; ++i) states(i)[0] &= ~kPolled;
}

void copy_in(uint64_t address, const void* in, int n) {
  if (std::memcmp(bytes(address), in, n) != 0) {
    ++current->progress;
    std::memcpy(bytes(address), in, n);
    wake_pollers(address);
  }
  for (int i = 0; i < n; ++i) states(address)[i] |= kWritten;
}

template <int Bytes>
void copy_in_fixed(uint64_t address, const void* in) {
  if (std::memcmp(bytes(address), in, Bytes) != 0) {
    ++current->progress;
    std::memcpy(bytes(address), in, Bytes);
    wake_pollers(address);
  }
  const auto mark = [](uint64_t at) {
    using T = Bits<Bytes == 16 ? 8 : Bytes>;
    T value;
    std::memcpy(&value, states(at), sizeof value);
    value |= repeated<T>(kWritten);
    std::memcpy(states(at), &value, sizeof value);
  };
  mark(address);
  if constexpr (Bytes == 16) mark(address + 8);
}

constexpr uint32_t size_flag(int n) { return static_cast<uint32_t>(std::countr_zero(unsigned(n))) << kSizeShift; }

bool is_buffered(const Fiber& f, uint64_t address, int n) {
  for (const BufferedStore& store : f.stores)
    if (address < store.address + store.bytes && store.address < address + n) return true;
  return false;
}

void apply(Fiber& f, const BufferedStore& store) {
  copy_in(store.address, store.data, store.bytes);
  if (store.strong && machine().settings.races) publish(f, store.address, false);
}

// One of the entries no older one overlaps.
void apply_random(Fiber& f) {
  size_t i = current->random.below(f.stores.size());
  for (size_t k = 0; k < i; ++k) {
    const BufferedStore &a = f.stores[k], &b = f.stores[i];
    if (a.address < b.address + b.bytes && b.address < a.address + a.bytes) {
      i = k;
      break;
    }
  }
  apply(f, f.stores[i]);
  f.stores.erase(f.stores.begin() + i);
}

void buffer_store(Fiber& f, const Site& site, uint64_t address, const void* in, int n, bool strong) {
  if (f.stores.size() >= kStoreBuffer) apply_random(f);
  BufferedStore store{&site, address, static_cast<uint8_t>(n), strong, {}};
  std::memcpy(store.data, in, n);
  f.stores.push_back(store);
}

// A store that stays invisible to others for a while; one to an address that is in the buffer must queue behind it.
bool stays_buffered(Fiber& f, uint64_t address, int n) {
  if (!machine().settings.store_buffer) return false;
  return (!f.stores.empty() && is_buffered(f, address, n)) || current->random.one_in(4);
}

bool is_strong(Order order) { return order != Order::weak; }

uint64_t place(Thread& t, const Site& site, Space space, uint64_t address, int n, bool write) {
  Fiber& f = *t.fiber;
  if (space == Space::shared) {
    if (address > kWindow - n) fail_access(f, site, kShared + std::min<uint64_t>(address, kWindow - 16), n, write);
    address += t.shared_base;
  } else if (space == Space::local) {
    address += t.local_base;
  } else if (space == Space::param) {
    if (address + n > current->request.kernel->param_bytes || address + n < address)
      abort_launch(f, site, 700, "out of bounds", "read of parameters at byte " + std::to_string(address));
    address += current->params;
  }
  check_place(f, site, address, n, write);
  return address;
}

void count_access(Thread& t, const Site& site, uint64_t address, int n, bool write) {
  const bool shared = address >= kShared;
  if (shared) {
    t.counters[static_cast<int>(write ? Counter::shared_stores : Counter::shared_loads)] += 1;
  } else {
    t.counters[static_cast<int>(write ? Counter::global_stores : Counter::global_loads)] += 1;
    t.counters[static_cast<int>(write ? Counter::global_store_bytes : Counter::global_load_bytes)] += n;
  }
  if (!machine().settings.traffic) return;
  trace_access(*t.fiber, site, address, n,
               shared ? (write ? AccessKind::shared_store : AccessKind::shared_load)
                      : (write ? AccessKind::global_store : AccessKind::global_load));
}

template <int Bytes>
[[gnu::always_inline]] inline void load_checked(Thread& t, const Site& site, uint64_t address, void* out) {
  Fiber& f = *t.fiber;
  if (!f.stores.empty() && is_buffered(f, address, Bytes)) [[unlikely]]
    drain_stores(f);
  if (!plainly_readable<Bytes>(address)) [[unlikely]]
    check_read_state(f, site, address, Bytes);
  if (machine().settings.races) record_read(f.clock, f, f.thread.index, site, address, Bytes, size_flag(Bytes));
  std::memcpy(out, bytes(address), Bytes);
  count_access(t, site, address, Bytes, false);
}

template <int Bytes>
[[gnu::always_inline]] inline void store_checked(Thread& t, const Site& site, uint64_t address, const void* in,
                                                 bool shared) {
  Fiber& f = *t.fiber;
  if (!plainly_writable<Bytes>(address)) [[unlikely]]
    check_write_state(f, site, address, Bytes);
  if (machine().settings.races) record_write(f.clock, f, f.thread.index, site, address, Bytes, size_flag(Bytes));
  if (!shared && stays_buffered(f, address, Bytes)) [[unlikely]]
    buffer_store(f, site, address, in, Bytes, false);
  else
    copy_in_fixed<Bytes>(address, in);
  count_access(t, site, address, Bytes, true);
}

template <int Bytes>
[[gnu::always_inline]] inline uint64_t shared_place(Thread& t, const Site& site, uint64_t offset, bool write) {
  if (offset > kWindow - Bytes) [[unlikely]]
    fail_access(*t.fiber, site, kShared + kWindow - 16, Bytes, write);
  if (offset & (Bytes - 1)) [[unlikely]]
    fail_alignment(*t.fiber, site, t.shared_base + offset, Bytes, write);
  return t.shared_base + offset;
}

// What a thread read there before, if it is among the latest addresses; else the place for it, in turn.
Fiber::Poll& last_poll(Fiber& f, uint64_t address) {
  constexpr uint32_t kPolls = std::extent_v<decltype(Fiber::polls)>;
  for (uint32_t i = 0; i < kPolls; ++i) {  // who polls several asks for them in the same order
    Fiber::Poll& found = f.polls[(f.next_poll + i) % kPolls];
    if (found.address != address) continue;
    f.next_poll = (f.next_poll + i + 1) % kPolls;
    return found;
  }
  Fiber::Poll& found = f.polls[f.next_poll];
  f.next_poll = (f.next_poll + 1) % kPolls;
  return found;
}

// Yields where a thread waits for another one: at an address where it has read the same before.
void poll(Thread& t, const Site& site, uint64_t address, int n) {
  Fiber& f = *t.fiber;
  t.counters[static_cast<int>(Counter::polls)] += 1;
  Fiber::Poll& last = last_poll(f, address);
  uint64_t value = 0, high = 0;
  std::memcpy(&value, bytes(address), std::min(n, 8));
  if (n == 16) std::memcpy(&high, bytes(address + 8), 8);
  value = value * 31 + high;
  const uint64_t since_last = t.instructions - f.polled_at;
  f.polled_at = t.instructions;
  if (last.address == address) {
    t.counters[static_cast<int>(Counter::polling)] += since_last;
    t.counters[static_cast<int>(Counter::repolled_bytes)] += n;
    if (last.value == value) {
      current->pollers[address / 16].push_back(&f);
      t.group->parked |= 1u << t.lane;
      for (int i = 0; i < n; ++i) states(address)[i] |= kPolled;
      yield_to_scheduler(f, &site, true);
    }
  }
  last = {address, value};
}

void load_local(Thread& t, const Site& site, uint64_t address, void* out, int n) {
  bool good = true;
  for (int i = 0; i < n; ++i) good &= states(address)[i] == (kAlive | kWritten);
  if (!good) check_read_state(*t.fiber, site, address, n);
  std::memcpy(out, bytes(address), n);
  t.counters[static_cast<int>(Counter::local_accesses)] += 1;
}

void store_local(Thread& t, const Site& site, uint64_t address, const void* in, int n) {
  for (int i = 0; i < n; ++i)
    if (!(states(address)[i] & kAlive)) fail_access(*t.fiber, site, address, n, true);
  std::memcpy(bytes(address), in, n);
  for (int i = 0; i < n; ++i) states(address)[i] |= kWritten;
  t.counters[static_cast<int>(Counter::local_accesses)] += 1;
}

uint32_t strong_flags(int n, Scope scope) {
  return kStrong | size_flag(n) | (scope == Scope::cta ? uint32_t{kCtaScope} : 0u);
}

void perform_copy(Fiber& f, const AsyncCopy& copy) {
  for (int i = 0; i < copy.bytes; ++i) states(copy.target)[i] &= ~kPending;
  std::byte data[16] = {};
  if (copy.source_bytes > 0) {
    if (is_buffered(f, copy.source, copy.source_bytes)) drain_stores(f);
    check_read_state(f, *copy.site, copy.source, copy.source_bytes);
    std::memcpy(data, bytes(copy.source), copy.source_bytes);
  }
  if (machine().settings.races) {
    if (copy.source_bytes > 0)
      record_read(f.clock, f, f.thread.index, *copy.site, copy.source, copy.source_bytes, size_flag(copy.bytes));
    record_write(f.clock, f, f.thread.index, *copy.site, copy.target, copy.bytes, size_flag(copy.bytes));
  }
  copy_in(copy.target, data, copy.bytes);
}

}  // namespace

Heap::Heap() {
  reserve(kMemory, kMemoryBytes);
  reserve(kStates, kMemoryBytes);
  reserve(kCells, kMemoryBytes / 4 * sizeof(Cell));
}

Heap& heap() {
  static Heap* const instance = new Heap;  // outlives the modules that free memory at exit
  return *instance;
}

// Addresses are handed out in turn and come back only after a lap, so that a stale pointer keeps pointing to freed
// memory.
uint64_t Heap::allocate(uint64_t size) {
  const uint64_t room = (std::max<uint64_t>(size, 1) + 255) / 256 * 256 + kGuard;
  if (live_bytes_ + size > machine().device.memory_bytes) return 0;
  for (int lap = 0; lap < 2; ++lap) {
    for (auto at = extents_.lower_bound(cursor_); at != extents_.end(); ++at) {
      if (cursor_ + room <= at->first) break;
      if (at->second.live) cursor_ = (at->first + at->second.size + kGuard + 255) / 256 * 256;
    }
    if (cursor_ + room <= kShared) break;
    cursor_ = kMemory + 65536;
  }
  if (cursor_ + room > kShared) return 0;
  extents_.erase(extents_.lower_bound(cursor_), extents_.lower_bound(cursor_ + room));
  const uint64_t address = cursor_;
  extents_[address] = {address, size, true};
  cursor_ += room;
  live_bytes_ += size;
  make_alive(address, size);
  return address;
}

bool Heap::release(uint64_t address) {
  const auto at = extents_.find(address);
  if (at == extents_.end() || !at->second.live) return false;
  at->second.live = false;
  live_bytes_ -= at->second.size;
  make_dead(address, at->second.size, kFreed);
  const uint64_t first = (address + 4095) / 4096 * 4096, last = (address + at->second.size) / 4096 * 4096;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
  return true;
}

const Heap::Extent* Heap::near(uint64_t address) const {
  auto at = extents_.upper_bound(address);
  if (at == extents_.begin()) return nullptr;
  return &(--at)->second;
}

void make_alive(uint64_t address, uint64_t size) {
  std::memset(bytes(address), kUnwritten, size);
  std::memset(states(address), kAlive, size);
}
void mark_written(uint64_t address, uint64_t size) { std::memset(states(address), kAlive | kWritten, size); }
void make_dead(uint64_t address, uint64_t size, uint8_t state) { std::memset(states(address), state, size); }

uint64_t alive_prefix(uint64_t address, uint64_t size) {
  if (address < kMemory || address >= kShared || size > kShared - address) return 0;
  uint64_t n = 0;
  while (n < size && states(address)[n] & kAlive) ++n;
  return n;
}
uint64_t written_prefix(uint64_t address, uint64_t size) {
  uint64_t n = 0;
  while (n < size && states(address)[n] & kWritten) ++n;
  return n;
}

void drain_stores(Fiber& f) {
  for (const BufferedStore& store : f.stores) apply(f, store);
  f.stores.clear();
}

void drain_stores_slowly(Fiber& f) {
  while (!f.stores.empty()) {
    apply_random(f);
    if (current->random.one_in(4)) yield_to_scheduler(f, f.stopped_at, false);
  }
}

bool drain_one_store(Fiber& f) {
  if (f.stores.empty()) return false;
  apply_random(f);
  return true;
}

void finish_async_copies(Fiber& f) {
  for (const AsyncCopy& copy : f.copies) perform_copy(f, copy);
  f.copies.clear();
}

template <int Bytes>
void load_weak(Thread& t, const Site& site, uint64_t address, void* out) {
  check_place(*t.fiber, site, address, Bytes, false);
  if (address >= kLocal) return load_local(t, site, address, out, Bytes);
  load_checked<Bytes>(t, site, address, out);
}
template <int Bytes>
void store_weak(Thread& t, const Site& site, uint64_t address, const void* in) {
  check_place(*t.fiber, site, address, Bytes, true);
  if (address >= kLocal) return store_local(t, site, address, in, Bytes);
  store_checked<Bytes>(t, site, address, in, address >= kShared);
}
template <int Bytes>
void load_shared(Thread& t, const Site& site, uint64_t offset, void* out) {
  load_checked<Bytes>(t, site, shared_place<Bytes>(t, site, offset, false), out);
}
template <int Bytes>
void store_shared(Thread& t, const Site& site, uint64_t offset, const void* in) {
  store_checked<Bytes>(t, site, shared_place<Bytes>(t, site, offset, true), in, true);
}

void load_any(Thread& t, const Site& site, Space space, uint64_t address, void* out, int size, int elements,
              Order order, Scope scope) {
  Fiber& f = *t.fiber;
  const int total = size * elements;
  address = place(t, site, space, address, total, false);
  if (space == Space::param || address >= kLocal) return load_local(t, site, address, out, total);
  if (!f.stores.empty() && is_buffered(f, address, total)) drain_stores(f);
  poll(t, site, address, total);
  // Only the elements are single reads; another thread's store may come between two of them.
  const bool torn = elements > 1 && current->random.one_in(8);
  const int first = torn ? current->random.below(elements) : 0;
  const int gap = torn ? 1 + current->random.below(elements - 1) : 0;
  for (int k = 0; k < elements; ++k) {
    if (torn && k == gap) yield_to_scheduler(f, &site, true);  // who polls with vectors gets no further by it
    const int element = (first + k) % elements;
    const uint64_t at = address + element * size;
    check_read_state(f, site, at, size);
    if (machine().settings.races) {
      record_read(f.clock, f, f.thread.index, site, at, size, strong_flags(size, scope));
      observe(f, at);
    }
    std::memcpy(static_cast<std::byte*>(out) + element * size, bytes(at), size);
  }
  if (machine().settings.races && (order == Order::acquire || order == Order::acq_rel)) acquire_fence(f);
  count_access(t, site, address, total, false);
}

void store_any(Thread& t, const Site& site, Space space, uint64_t address, const void* in, int size, int elements,
               Order order, Scope scope) {
  Fiber& f = *t.fiber;
  const int total = size * elements;
  address = place(t, site, space, address, total, true);
  if (address >= kLocal) return store_local(t, site, address, in, total);
  const bool releases = order == Order::release || order == Order::acq_rel;
  if (releases) {
    drain_stores(f);
    if (machine().settings.races) release_fence(f, scope);
  }
  const uint32_t flags = is_strong(order) ? strong_flags(size, scope) : size_flag(size);
  for (int k = 0; k < elements; ++k) {
    const uint64_t at = address + k * size;
    const void* element = static_cast<const std::byte*>(in) + k * size;
    check_write_state(f, site, at, size);
    if (machine().settings.races) record_write(f.clock, f, f.thread.index, site, at, size, flags);
    if (!releases && address < kShared && stays_buffered(f, at, size)) {
      buffer_store(f, site, at, element, size, is_strong(order));
    } else {
      copy_in(at, element, size);
      if (machine().settings.races) publish(f, at, false);
    }
  }
  count_access(t, site, address, total, true);
}

void* atomic_begin(Thread& t, const Site& site, Space space, uint64_t address, int size, Order order, Scope scope) {
  Fiber& f = *t.fiber;
  if (current->random.one_in(8)) yield_to_scheduler(f, &site, false);
  address = place(t, site, space, address, size, true);
  t.counters[static_cast<int>(Counter::atomics)] += 1;
  const bool releases = order == Order::release || order == Order::acq_rel;
  if (releases || is_buffered(f, address, size)) drain_stores(f);
  Fiber::Poll& last = last_poll(f, address);
  uint64_t value = 0;
  std::memcpy(&value, bytes(address), size);
  if (last.address == address && last.value == value) yield_to_scheduler(f, &site, true);  // a lock that stays taken
  check_read_state(f, site, address, size);
  std::memcpy(&value, bytes(address), size);
  last = {address, value};
  if (machine().settings.races) {
    if (releases) release_fence(f, scope);
    record_read(f.clock, f, f.thread.index, site, address, size, strong_flags(size, scope) | kAtomic);
    record_write(f.clock, f, f.thread.index, site, address, size, strong_flags(size, scope) | kAtomic);
    observe(f, address);
  }
  return bytes(address);
}

void atomic_end(Thread& t, void* cell, int size, uint64_t old_bits, uint64_t new_bits, Order order, Scope) {
  Fiber& f = *t.fiber;
  if (std::memcmp(&old_bits, &new_bits, size) != 0) {
    std::memcpy(cell, &new_bits, size);
    ++current->progress;
    wake_pollers(reinterpret_cast<uint64_t>(cell));
  }
  if (machine().settings.races) {
    publish(f, reinterpret_cast<uint64_t>(cell), true);
    if (order == Order::acquire || order == Order::acq_rel) acquire_fence(f);
  }
}

void fence(Thread& t, const Site&, Order order, Scope scope) {
  Fiber& f = *t.fiber;
  t.counters[static_cast<int>(Counter::fences)] += 1;
  if (order != Order::acquire) drain_stores_slowly(f);
  if (!machine().settings.races) return;
  if (order != Order::release) acquire_fence(f);
  if (order != Order::acquire) release_fence(f, scope);
}

uint64_t to_generic(Thread& t, Space space, uint64_t address) {
  switch (space) {
    case Space::shared: return t.shared_base + address;
    case Space::local: return t.local_base + address;
    case Space::param: return current->params + address;
    default: return address;
  }
}
uint64_t from_generic(Thread& t, Space space, uint64_t address) {
  switch (space) {
    case Space::shared: return address - t.shared_base;
    case Space::local: return address - t.local_base;
    case Space::param: return address - current->params;
    default: return address;
  }
}
bool is_space(Thread&, Space space, uint64_t address) {
  switch (space) {
    case Space::shared: return address >= kShared && address < kLocal;
    case Space::local: return address >= kLocal && address < kEnd;
    case Space::global: return address < kShared || address >= kEnd;
    default: return false;
  }
}

void copy_async(Thread& t, const Site& site, uint64_t target, uint64_t source, int size, int source_bytes) {
  Fiber& f = *t.fiber;
  t.counters[static_cast<int>(Counter::async_copies)] += 1;
  t.counters[static_cast<int>(Counter::async_copy_bytes)] += size;
  if (source_bytes > size)
    abort_launch(f, site, 719, "invalid cp.async",
                 "it reads " + std::to_string(source_bytes) + " bytes to write " + std::to_string(size));
  target = place(t, site, Space::shared, target, size, true);
  check_write_state(f, site, target, size);
  if (source_bytes > 0) {
    check_place(f, site, source, size, false);
    if (source >= kShared) fail_access(f, site, source, size, false);
    check_read_state(f, site, source, source_bytes);
    count_access(t, site, source, size, false);
  }
  if (machine().settings.races) record_write(f.clock, f, f.thread.index, site, target, size, size_flag(size));
  std::memset(bytes(target), kUnwritten, size);
  for (int i = 0; i < size; ++i) states(target)[i] |= kPending;
  f.copies.push_back({&site, target, source, size, source_bytes, false, 0});
  count_access(t, site, target, size, true);
}

void copy_async_commit(Thread& t, const Site&) {
  Fiber& f = *t.fiber;
  for (AsyncCopy& copy : f.copies)
    if (!copy.committed) {
      copy.committed = true;
      copy.group = f.copy_group;
    }
  ++f.copy_group;
}

void copy_async_wait(Thread& t, const Site&, int groups) {
  Fiber& f = *t.fiber;
  const auto covered = [&](const AsyncCopy& copy) {
    return groups < 0 || (copy.committed && copy.group + groups < f.copy_group);
  };
  for (const AsyncCopy& copy : f.copies)
    if (covered(copy)) perform_copy(f, copy);
  std::erase_if(f.copies, covered);
}

#define SIM_INSTANTIATE(N)                                                  \
  template void load_weak<N>(Thread&, const Site&, uint64_t, void*);        \
  template void store_weak<N>(Thread&, const Site&, uint64_t, const void*); \
  template void load_shared<N>(Thread&, const Site&, uint64_t, void*);      \
  template void store_shared<N>(Thread&, const Site&, uint64_t, const void*);
SIM_INSTANTIATE(1)
SIM_INSTANTIATE(2)
SIM_INSTANTIATE(4)
SIM_INSTANTIATE(8)
SIM_INSTANTIATE(16)

}  // namespace sim
