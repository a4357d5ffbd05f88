// The kernels of the instruction set amx run on a machine without matrix registers: the source is the same, over
// registers in software, and is linked in place of csrc/cpu/isa_amx.cpp. Intel's manual tells what the instructions do.
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/compilers.h"
#include "cpu/isa.h"

namespace {
constexpr int kRegisters = 8;
constexpr int kMaxRows = 16;

struct MatrixRegister {
  int rows = 0, row_bytes = 0;  // 0 rows are not configured, and any use is an error
  uint8_t bytes[kMaxRows][64];
};
thread_local MatrixRegister registers[kRegisters];

MatrixRegister& configured(int index) {
  MatrixRegister& chosen = registers[index];
  if (chosen.rows == 0) __builtin_trap();
  return chosen;
}

void load_configuration(const void* memory) {
  const auto* bytes = static_cast<const uint8_t*>(memory);
  if (bytes[0] != 1) __builtin_trap();  // there is no other palette
  for (int i = 0; i < kRegisters; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
    registers[i] = {};
    registers[i].row_bytes = row_bytes;
    registers[i].rows = bytes[48 + i];
    if (row_bytes > 64 || registers[i].rows > kMaxRows) __builtin_trap();
  }
}

void release_registers() {
  for (MatrixRegister& one : registers) one = {};
}

void zero_register(int index) {
  MatrixRegister& to = configured(index);
  std::memset(to.bytes, 0, sizeof to.bytes);
}

void load_register(int index, const void* memory, int64_t stride) {
  MatrixRegister& to = configured(index);
  for (int r = 0; r < to.rows; ++r)
    std::memcpy(to.bytes[r], static_cast<const uint8_t*>(memory) + r * stride, to.row_bytes);
}

void store_register(int index, void* memory, int64_t stride) {
  const MatrixRegister& from = configured(index);
  for (int r = 0; r < from.rows; ++r)
    std::memcpy(static_cast<uint8_t*>(memory) + r * stride, from.bytes[r], from.row_bytes);
}

// Element i of a row is a bfloat16.
float element(const uint8_t* row, int i) {
  uint16_t half;
  std::memcpy(&half, row + 2 * i, sizeof half);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The instruction adds the sum over the pairs k of a[m][k] . b[k][n] to sums[m][n].
void multiply_pairs(int sums, int a, int b) {
  MatrixRegister& out = configured(sums);
  const MatrixRegister &left = configured(a), &right = configured(b);
  if (left.rows != out.rows || right.row_bytes != out.row_bytes || left.row_bytes / 4 != right.rows) __builtin_trap();
  for (int m = 0; m < out.rows; ++m)
    for (int k = 0; k < right.rows; ++k)
      for (int n = 0; n < out.row_bytes / 4; ++n) {
        float sum;
        std::memcpy(&sum, out.bytes[m] + 4 * n, sizeof sum);
        for (int i = 0; i < 2; ++i) sum += element(left.bytes[m], 2 * k + i) * element(right.bytes[k], 2 * n + i);
        std::memcpy(out.bytes[m] + 4 * n, &sum, sizeof sum);
      }
}
}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig load_configuration
#define _tile_release release_registers
#define _tile_zero zero_register
#define _tile_loadd load_register
#define _tile_stored store_register
#define _tile_dpbf16ps multiply_pairs

#define FASTRNN_ISA amx
#define FASTRNN_ISA_AVX512
#define FASTRNN_ISA_AMX
#define FASTRNN_PAIRS kAvx512
FASTRNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kAmx = amx::instruction_set("amx, emulated", [] { return kAvx512.runs_here(); });
}  // namespace fastrnn::cpu
FASTRNN_END_TARGET
#endif
