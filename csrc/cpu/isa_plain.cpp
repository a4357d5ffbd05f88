// The CPU kernels for whatever the compiler targets by default.
#include "cpu/for_plain.h"
#include "cpu/isa_table.h"

namespace fastrnn::cpu {
constinit const InstructionSet kPlain = plain::instruction_set("plain", [] { return true; });
}  // namespace fastrnn::cpu
FASTRNN_END_ISA
