// The functions for NEON.
#if defined(__aarch64__)
#include "cpu/for_neon.h"
#include "functions_of_set.h"

namespace fastrnn::test {
constinit const FunctionsOfSet kNeonFunctions = neon::functions_of(cpu::kNeon);
}  // namespace fastrnn::test
FASTRNN_END_ISA
#endif
