// The scans for AVX2 over bfloat16 and float16.
#if defined(__x86_64__)
#include "cpu/for_avx2.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::avx2 {
template struct ScanKernels<BFloat16>;
template struct ScanKernels<Half>;
}  // namespace fastrnn::avx2
FASTRNN_END_ISA
#endif
