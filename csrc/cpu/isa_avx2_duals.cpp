// The scans for AVX2 over dual numbers.
#if defined(__x86_64__)
#include "cpu/for_avx2.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::avx2 {
template struct ScanKernels<Dual<float>>;
template struct ScanKernels<Dual<double>>;
}  // namespace fastrnn::avx2
FASTRNN_END_ISA
#endif
