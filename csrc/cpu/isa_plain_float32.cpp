// The scans for the compiler's default over float32.
#include "cpu/for_plain.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::plain {
template struct ScanKernels<float>;
}  // namespace fastrnn::plain
FASTRNN_END_ISA
