// A fiber is a stack and a saved stack pointer. The switch is written by hand because ucontext's makes a system call at
// every switch (twenty times slower); it keeps what the C++ calling convention asks of a callee, nothing else.
#pragma once

#include <cstddef>

namespace sim {

inline constexpr size_t kStackBytes = 256 * 1024;  // generated functions keep every PTX register in their frame

// Saves the running context in *save and continues the one saved in `next`.
extern "C" void sim_switch(void** save, void* next);

// The initial context of stack `index`, which starts by calling `entry` (which must not return).
// Stacks are reserved once and reused; their pages are touched when first used.
void* fresh_context(size_t index, void (*entry)());
bool stack_overflown(size_t index, const void* stack_pointer);

}  // namespace sim
