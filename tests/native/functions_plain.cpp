// The functions for the compiler's default.
#include "cpu/for_plain.h"
#include "functions_of_set.h"

namespace fastrnn::test {
constinit const FunctionsOfSet kPlainFunctions = plain::functions_of(cpu::kPlain);
}  // namespace fastrnn::test
FASTRNN_END_ISA
