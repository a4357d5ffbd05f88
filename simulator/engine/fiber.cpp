#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl sim_switch
.type sim_switch, @function
sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sim_switch, .-sim_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl sim_switch
.type sim_switch, %function
sim_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size sim_switch, .-sim_switch
)");
#else
#error "the simulator's context switch knows x86-64 and aarch64"
#endif

namespace sim {
namespace {

// An odd number of pages from stack to stack, and tops at different offsets in a page: equal strides would put the hot
// part of all stacks into the same sets of the cache and of the TLB.
constexpr size_t kStride = kStackBytes + 4096;
constexpr size_t kStacks = 1 << 19;

char* stacks() {
  static char* const base = [] {
    void* p =
        mmap(nullptr, kStride * kStacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      std::perror("simulator: cannot reserve the fibers' stacks");
      std::abort();
    }
    madvise(p, kStride * kStacks, MADV_NOHUGEPAGE);
    return static_cast<char*>(p);
  }();
  return base;
}

}  // namespace

void* fresh_context(size_t index, void (*entry)()) {
  if (index >= kStacks) std::abort();  // more threads than any device holds
  char* top = stacks() + (index + 1) * kStride - (index % 32) * 128 - 256;
#if defined(__x86_64__)
  auto* sp = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
  *--sp = 0;  // the return address of entry, which never returns; leaves the stack aligned as after a call
  *--sp = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--sp = 0;
#else
  auto* sp = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 160);
  for (int i = 0; i < 20; ++i) sp[i] = 0;
  sp[1] = reinterpret_cast<uint64_t>(entry);
#endif
  return sp;
}

bool stack_overflown(size_t index, const void* stack_pointer) {
  return static_cast<const char*>(stack_pointer) < stacks() + index * kStride + 4096;
}

}  // namespace sim
