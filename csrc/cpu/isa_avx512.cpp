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

#define FASTRNN_ISA avx512
#define FASTRNN_ISA_AVX512
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAvx512 = avx512::instruction_set("avx512", runs_here);
}  // namespace fastrnn::cpu
#endif
