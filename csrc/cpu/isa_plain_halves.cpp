// The scans for the compiler's default over bfloat16 and float16.
#include "cpu/for_plain.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::plain {
template struct ScanKernels<BFloat16>;
template struct ScanKernels<Half>;
}  // namespace fastrnn::plain
FASTRNN_END_ISA
