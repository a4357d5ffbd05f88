// The functional simulator's engine, as the translated kernels and the host's stand-ins see it.
//
// A CUDA thread is a fiber; a translated kernel is `void kernel(sim::Thread&)`, one C++ function that runs straight
// through and calls the engine where threads can meet: memory, barriers, warp collectives, loops. Device addresses are
// host addresses inside one reserved region, so a generic address needs no lookup and shadow lies at a fixed offset.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Unoptimized code compiles in a fourth of the time where nothing is inlined.
#ifdef __OPTIMIZE__
#define SIM_INLINE [[gnu::always_inline]] inline
#else
#define SIM_INLINE inline
#endif

namespace sim {

enum class Space : uint8_t { generic, global, shared, local, param, constant };
enum class Order : uint8_t { weak, relaxed, acquire, release, acq_rel, volatile_ };  // fence.sc is acq_rel
enum class Scope : uint8_t { none, cta, cluster, gpu, sys };

// One PTX instruction that can fail, static for the life of the module.
struct Site {
  const char* kernel;
  int ptx_line;
  const char* source;  // path of the .cu file, null without .loc
  int source_line;
  const char* text;  // the instruction
};

// What a kernel did. The translator counts the classes of instructions, per thread (a model divides by 32); the engine
// counts the rest. Kept per block: the report gives the sum and the busiest block's value.
enum class Counter : uint8_t {
  instructions,  // all of them; may be added once a basic block
  integer,
  fp32,  // add, mul, fma
  fp64,
  fp16,  // half and bfloat16, two lanes of an x2 are one instruction
  mufu,  // ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh
  convert,
  mma,       // warp instructions x 32
  mma_half,  // multiply-adds inside mma, by operand type; add the whole product's once (one lane's call)
  mma_tf32,
  shuffle,  // shfl, vote, match, redux
  branch,
  // From here on counted by the engine.
  global_loads,  // thread accesses
  global_stores,
  global_load_bytes,
  global_store_bytes,
  global_load_sectors,  // 32 bytes, distinct within a warp's instruction; times 32 they are L2 traffic
  global_store_sectors,
  global_requests,  // warp instructions
  shared_loads,
  shared_stores,
  shared_requests,
  shared_wavefronts,  // equal to the phases an access of its width needs when no banks collide
  shared_conflicts,   // wavefronts beyond those
  local_accesses,
  atomics,
  polls,           // strong loads
  repolled_bytes,  // bytes of strong loads of an address this thread has polled before
  polling,         // instructions of threads between such a load and the strong load before it: how many of them there
                   // are depends on the schedule, and so does what they add to `instructions`
  fences,
  barriers,  // thread arrivals
  collectives,
  async_copies,
  async_copy_bytes,
  count
};

// Numbers for special(): what the engine knows and registers of the thread itself do not tell.
enum Special : int {
  kEnvreg1,
  kEnvreg2,
  kSmid,
  kNsmid,
  kGridid,
  kWarpid,
  kNwarpid,
  kDynamicSharedBytes,
  kTotalSharedBytes
};

struct Block;
struct Warp;
struct Fiber;

// One CUDA thread. Everything after `params` is the engine's.
struct Thread {
  uint32_t tid[3], ntid[3], ctaid[3], nctaid[3];
  uint32_t lane, warp;      // warp: within the block
  const std::byte* params;  // the kernel's parameters, laid out as in PTX

  uint64_t* counters;      // of the block
  uint64_t shared_base;    // device address of the block's shared memory
  uint64_t local_base;     // device address of this thread's local memory
  uint32_t branches_left;  // backward branches until the next yield
  uint64_t instructions;   // that this thread has begun, a basic block at a time
  uint32_t index;          // of the thread in the grid, counted in whole warps
  Block* block;
  Warp* group;
  Fiber* fiber;  // all else the engine keeps of a thread
};

// --- memory ---------------------------------------------------------------------------------------------------------
// `bytes` is the size of ONE element (ld.v4.b32: bytes 4, elements 4; 1, 2, 4, 8 or 16 in all); `out` and `in` are
// arrays of such elements. Addresses: shared, local and param are offsets, all others device addresses.
// Strong vector accesses tear between elements. ldmatrix: let each lane load its own row of 16 bytes, then exchange.
void load(Thread&, const Site&, Space, uint64_t address, void* out, int bytes, int elements, Order, Scope);
void store(Thread&, const Site&, Space, uint64_t address, const void* in, int bytes, int elements, Order, Scope);

// Out of line because it may yield: returns the host address to work on, or does not return.
void* atomic_begin(Thread&, const Site&, Space, uint64_t address, int bytes, Order, Scope);
void atomic_end(Thread&, void* cell, int bytes, uint64_t old_bits, uint64_t new_bits, Order, Scope);

// Read, modify, write in one step. `f` takes the old bits and gives the new ones; the old ones are returned.
template <class F>
uint64_t atomic(Thread& t, const Site& site, Space space, uint64_t address, int bytes, Order order, Scope scope, F f) {
  void* cell = atomic_begin(t, site, space, address, bytes, order, scope);
  uint64_t old_bits = 0;
  std::memcpy(&old_bits, cell, bytes);
  atomic_end(t, cell, bytes, old_bits, f(old_bits), order, scope);
  return old_bits;
}

void fence(Thread&, const Site&, Order, Scope);

uint64_t to_generic(Thread&, Space, uint64_t address);
uint64_t from_generic(Thread&, Space, uint64_t address);
bool is_space(Thread&, Space, uint64_t generic_address);

// cp.async: executed no earlier than the wait that covers it; until then its destination must not be touched.
// src_bytes < bytes fills the rest with zeros.
void copy_async(Thread&, const Site&, uint64_t shared_dst, uint64_t global_src, int bytes, int src_bytes);
void copy_async_commit(Thread&, const Site&);
void copy_async_wait(Thread&, const Site&, int groups /* may stay pending; -1: wait for all, uncommitted too */);

// --- threads that meet ----------------------------------------------------------------------------------------------
// bar.sync (wait) and bar.arrive (not); count in threads, -1: the whole block.
void barrier(Thread&, const Site&, int id, int count, bool wait);
enum { kReducePopc, kReduceAnd, kReduceOr };
uint32_t barrier_reduce(Thread&, const Site&, int id, int count, int op, bool predicate);

inline constexpr int kWarpSync = 0;  // the kind of bar.warp.sync, the one collective that orders memory

using CollectiveBody = void (*)(void* compute, void** operands, uint32_t mask);
void collective_meet(Thread&, const Site&, int kind, uint32_t mask, bool aligned, void* mine, void* compute,
                     CollectiveBody);

// Every lane of `mask` arrives with its operands; once the last (of those alive) is there, compute(operands, mask) runs
// once for all of them: operands[lane] is that lane's, null outside of the mask. `kind` is any number of the
// translator's; lanes meet only at one kind and mask, and `aligned` ones must be at the same site.
template <class Operands, class F>
void collective(Thread& t, const Site& site, int kind, uint32_t mask, bool aligned, Operands& mine, F compute) {
  collective_meet(t, site, kind, mask, aligned, &mine, &compute, [](void* f, void** all, uint32_t arrived) {
    Operands* operands[32];
    for (int lane = 0; lane < 32; ++lane) operands[lane] = static_cast<Operands*>(all[lane]);
    (*static_cast<F*>(f))(operands, arrived);
  });
}

uint32_t activemask(Thread&, const Site&);

// --- time and ends --------------------------------------------------------------------------------------------------
void spend_branches(Thread&);
inline void backward_branch(Thread& t) {
  if (--t.branches_left == 0) [[unlikely]]
    spend_branches(t);
}
void nanosleep(Thread&, uint32_t ns);
[[noreturn]] void trap(Thread&, const Site&);
[[noreturn]] void exit_thread(Thread&);  // returning from the kernel does the same
uint64_t globaltimer(Thread&);           // a virtual clock in ns: advances with scheduling rounds and sleeps
uint64_t clock(Thread&);
uint32_t special(Thread&, int which);
uint64_t random(Thread&);  // of the numeric seed; 0 when perturbation is off (perturbing())
bool perturbing(Thread&);  // false: approximate functions should be exact
[[noreturn]] void fail(Thread&, const Site&, const char* what);  // assert, bad operands: ends the launch with a finding
void print(Thread&, const char* text);                           // vprintf's output

inline void count(Thread& t, Counter which, uint64_t n = 1) {
  t.counters[static_cast<int>(which)] += n;
  if (which == Counter::instructions) t.instructions += n;
}

// --- what a translated module registers when it is loaded -----------------------------------------------------------
struct ParamInfo {
  uint32_t offset, bytes;
};

struct KernelInfo {
  const char* name;  // mangled, as in PTX
  void (*entry)(Thread&);
  uint32_t param_bytes;
  uint32_t static_shared_bytes;  // the dynamic part begins at this, rounded up to 16
  uint32_t local_bytes;          // a thread's local memory, all frames of called functions included
  uint32_t max_threads;          // product of .maxntid, 0: none given
  const ParamInfo* params;
  uint32_t param_count;
};

void register_kernel(const KernelInfo&);  // copied; a later kernel of one name replaces the earlier
// A .global or .const variable; `init` may be null (zeros). Returns its device address.
uint64_t register_global(const char* name, uint64_t bytes, const void* init);

// --- inline parts ---------------------------------------------------------------------------------------------------
// Weak accesses to global and shared memory are the hot path: one function a size, in the engine, keeps the generated
// code small and quick to compile.
template <int Bytes>
void load_weak(Thread&, const Site&, uint64_t address, void* out);
template <int Bytes>
void store_weak(Thread&, const Site&, uint64_t address, const void* in);
template <int Bytes>
void load_shared(Thread&, const Site&, uint64_t offset, void* out);
template <int Bytes>
void store_shared(Thread&, const Site&, uint64_t offset, const void* in);
void load_any(Thread&, const Site&, Space, uint64_t address, void* out, int bytes, int elements, Order, Scope);
void store_any(Thread&, const Site&, Space, uint64_t address, const void* in, int bytes, int elements, Order, Scope);
extern template void load_weak<1>(Thread&, const Site&, uint64_t, void*);
extern template void load_weak<2>(Thread&, const Site&, uint64_t, void*);
extern template void load_weak<4>(Thread&, const Site&, uint64_t, void*);
extern template void load_weak<8>(Thread&, const Site&, uint64_t, void*);
extern template void load_weak<16>(Thread&, const Site&, uint64_t, void*);
extern template void store_weak<1>(Thread&, const Site&, uint64_t, const void*);
extern template void store_weak<2>(Thread&, const Site&, uint64_t, const void*);
extern template void store_weak<4>(Thread&, const Site&, uint64_t, const void*);
extern template void store_weak<8>(Thread&, const Site&, uint64_t, const void*);
extern template void store_weak<16>(Thread&, const Site&, uint64_t, const void*);
extern template void load_shared<1>(Thread&, const Site&, uint64_t, void*);
extern template void load_shared<2>(Thread&, const Site&, uint64_t, void*);
extern template void load_shared<4>(Thread&, const Site&, uint64_t, void*);
extern template void load_shared<8>(Thread&, const Site&, uint64_t, void*);
extern template void load_shared<16>(Thread&, const Site&, uint64_t, void*);
extern template void store_shared<1>(Thread&, const Site&, uint64_t, const void*);
extern template void store_shared<2>(Thread&, const Site&, uint64_t, const void*);
extern template void store_shared<4>(Thread&, const Site&, uint64_t, const void*);
extern template void store_shared<8>(Thread&, const Site&, uint64_t, const void*);
extern template void store_shared<16>(Thread&, const Site&, uint64_t, const void*);

SIM_INLINE void load(Thread& t, const Site& site, Space space, uint64_t address, void* out, int bytes, int elements,
                     Order order, Scope scope) {
  const int total = bytes * elements;
  if (order == Order::weak && space == Space::shared) {
    switch (total) {
      case 1: return load_shared<1>(t, site, address, out);
      case 2: return load_shared<2>(t, site, address, out);
      case 4: return load_shared<4>(t, site, address, out);
      case 8: return load_shared<8>(t, site, address, out);
      case 16: return load_shared<16>(t, site, address, out);
    }
  }
  if (order == Order::weak && (space == Space::global || space == Space::generic || space == Space::constant)) {
    switch (total) {
      case 1: return load_weak<1>(t, site, address, out);
      case 2: return load_weak<2>(t, site, address, out);
      case 4: return load_weak<4>(t, site, address, out);
      case 8: return load_weak<8>(t, site, address, out);
      case 16: return load_weak<16>(t, site, address, out);
    }
  }
  load_any(t, site, space, address, out, bytes, elements, order, scope);
}

SIM_INLINE void store(Thread& t, const Site& site, Space space, uint64_t address, const void* in, int bytes,
                      int elements, Order order, Scope scope) {
  const int total = bytes * elements;
  if (order == Order::weak && space == Space::shared) {
    switch (total) {
      case 1: return store_shared<1>(t, site, address, in);
      case 2: return store_shared<2>(t, site, address, in);
      case 4: return store_shared<4>(t, site, address, in);
      case 8: return store_shared<8>(t, site, address, in);
      case 16: return store_shared<16>(t, site, address, in);
    }
  }
  if (order == Order::weak && (space == Space::global || space == Space::generic)) {
    switch (total) {
      case 1: return store_weak<1>(t, site, address, in);
      case 2: return store_weak<2>(t, site, address, in);
      case 4: return store_weak<4>(t, site, address, in);
      case 8: return store_weak<8>(t, site, address, in);
      case 16: return store_weak<16>(t, site, address, in);
    }
  }
  store_any(t, site, space, address, in, bytes, elements, order, scope);
}

}  // namespace sim
