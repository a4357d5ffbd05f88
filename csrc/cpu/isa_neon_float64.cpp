// The scans for NEON over float64.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::neon {
template struct ScanKernels<double>;
}  // namespace fastrnn::neon
FASTRNN_END_ISA
#endif
