// The scans for AVX2 over float64.
#if defined(__x86_64__)
#include "cpu/for_avx2.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::avx2 {
template struct ScanKernels<double>;
}  // namespace fastrnn::avx2
FASTRNN_END_ISA
#endif
