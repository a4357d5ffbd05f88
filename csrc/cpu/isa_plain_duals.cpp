// The scans for the compiler's default over dual numbers.
#include "cpu/for_plain.h"
#include "cpu/isa_kernels.h"

namespace fastrnn::plain {
template struct ScanKernels<Dual<float>>;
template struct ScanKernels<Dual<double>>;
}  // namespace fastrnn::plain
FASTRNN_END_ISA
