// The CPU kernels for 64-bit Arm whose products of bfloat16 are of blocks. The other types are kNeon's.
#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "cpu/compilers.h"
#include "cpu/isa.h"

#define FASTRNN_ISA neon_bf16
#define FASTRNN_ISA_NEON
#define FASTRNN_PAIRS kNeon
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kNeonBf16 = neon_bf16::instruction_set("neon_bf16", [] {
#if defined(__linux__)
  return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#else
  return false;
#endif
});
}  // namespace fastrnn::cpu
#endif
