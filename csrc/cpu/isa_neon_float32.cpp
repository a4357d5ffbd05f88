// The scans for NEON over float32.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::neon {
template struct ScanKernels<float>;
}  // namespace fastrnn::neon
FASTRNN_END_ISA
#endif
