// The CPU kernels for AVX2.
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include "cpu/isa.h"

namespace {
// Before the instruction set is named: it runs on every machine.
bool has_half_conversions() {  // clang 16 does not know f16c by name
  unsigned eax, ebx, ecx = 0, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_half_conversions(); }
}  // namespace

#include "cpu/for_avx2.h"
#include "cpu/isa_table.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAvx2 = avx2::instruction_set("avx2", runs_here);
}  // namespace fastrnn::cpu
FASTRNN_END_ISA
#endif
