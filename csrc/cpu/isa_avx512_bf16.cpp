// The CPU kernels for AVX512 whose products of bfloat16 are of pairs. The other types are kAvx512's.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/compilers.h"
#include "cpu/isa.h"

namespace {
// Before the instruction set is named: it runs on every machine.
bool runs_here() { return fastrnn::cpu::kAvx512.runs_here() && __builtin_cpu_supports("avx512bf16"); }
}  // namespace

#define FASTRNN_ISA avx512_bf16
#define FASTRNN_ISA_AVX512
#define FASTRNN_PAIRS kAvx512
FASTRNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAvx512Bf16 = avx512_bf16::instruction_set("avx512_bf16", runs_here);
}  // namespace fastrnn::cpu
FASTRNN_END_TARGET
#endif
