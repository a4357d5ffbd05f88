// The CPU kernels for AVX512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/isa.h"

namespace {
// Before the instruction set is named: it runs on every machine.
bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
}  // namespace

#include "cpu/for_avx512.h"
#include "cpu/isa_table.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAvx512 = avx512::instruction_set("avx512", runs_here);
}  // namespace fastrnn::cpu
FASTRNN_END_ISA
#endif
