// The CPU kernels for NEON, which every 64-bit Arm chip has.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "cpu/isa.h"

#define FASTRNN_ISA neon
#define FASTRNN_ISA_NEON
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kNeon = neon::instruction_set("neon", [] { return true; });
}  // namespace fastrnn::cpu
#endif
