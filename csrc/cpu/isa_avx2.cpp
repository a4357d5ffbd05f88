// The CPU kernels for AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/isa.h"

namespace {
// Before the instruction set is named: it runs on every machine.
bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace

#include "cpu/for_avx2.h"
#include "cpu/isa_table.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAvx2 = avx2::instruction_set("avx2", runs_here);
}  // namespace fastrnn::cpu
#endif
