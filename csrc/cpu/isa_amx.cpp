// The CPU kernels for AVX512 whose products of bfloat16 run on matrix registers. The other types are kAvx512's.
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/compilers.h"
#include "cpu/isa.h"

namespace {
// Before the instruction set is named: it runs on every machine.
bool ask_for_matrix_registers() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // of EDX in leaf 7
  unsigned eax, ebx, ecx, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & (kAmxBf16 | kAmxTile)) != (kAmxBf16 | kAmxTile)) return false;
  // Linux hands them out to a process that asks: their state makes a context switch larger.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool runs_here() {
  static const bool here = fastrnn::cpu::kAvx512.runs_here() && ask_for_matrix_registers();
  return here;
}
}  // namespace

#define FASTRNN_ISA amx
#define FASTRNN_ISA_AVX512
#define FASTRNN_ISA_AMX
#define FASTRNN_PAIRS kAvx512
FASTRNN_TARGET("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAmx = amx::instruction_set("amx", runs_here);
}  // namespace fastrnn::cpu
FASTRNN_END_TARGET
#endif
