// The scans for AVX512 over float64.
#if defined(__x86_64__)
#include "cpu/for_avx512.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::avx512 {
template struct ScanKernels<double>;
}  // namespace fastrnn::avx512
FASTRNN_END_ISA
#endif
