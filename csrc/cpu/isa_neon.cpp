// The CPU kernels for NEON, which every 64-bit Arm chip has.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "cpu/isa_table.h"

namespace fastrnn::cpu {
constinit const InstructionSet kNeon = neon::instruction_set("neon", [] { return true; });
}  // namespace fastrnn::cpu
FASTRNN_END_ISA
#endif
