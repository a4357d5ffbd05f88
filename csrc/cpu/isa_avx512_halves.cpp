// The scans for AVX512 over bfloat16 and float16.
#if defined(__x86_64__)
#include "cpu/for_avx512.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::avx512 {
template struct ScanKernels<BFloat16>;
template struct ScanKernels<Half>;
}  // namespace fastrnn::avx512
FASTRNN_END_ISA
#endif
