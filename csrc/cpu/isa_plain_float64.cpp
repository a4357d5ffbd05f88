// The scans for the compiler's default over float64.
#include "cpu/for_plain.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::plain {
template struct ScanKernels<double>;
}  // namespace fastrnn::plain
FASTRNN_END_ISA
