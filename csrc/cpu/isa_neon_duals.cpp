// The scans for NEON over dual numbers.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::neon {
template struct ScanKernels<Dual<float>>;
template struct ScanKernels<Dual<double>>;
}  // namespace fastrnn::neon
FASTRNN_END_ISA
#endif
