// The functions for AVX2.
#if defined(__x86_64__)
#include "cpu/for_avx2.h"
#include "functions_of_set.h"

namespace fastrnn::test {
constinit const FunctionsOfSet kAvx2Functions = avx2::functions_of(cpu::kAvx2);
}  // namespace fastrnn::test
FASTRNN_END_ISA
#endif
