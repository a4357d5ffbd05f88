// The functions for AVX512.
#if defined(__x86_64__)
#include "cpu/for_avx512.h"
#include "functions_of_set.h"

namespace fastrnn::test {
constinit const FunctionsOfSet kAvx512Functions = avx512::functions_of(cpu::kAvx512);
}  // namespace fastrnn::test
FASTRNN_END_ISA
#endif
