// The scans for NEON over bfloat16 and float16.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::neon {
template struct ScanKernels<BFloat16>;
template struct ScanKernels<Half>;
}  // namespace fastrnn::neon
FASTRNN_END_ISA
#endif
