// The CPU kernels for whatever the compiler targets by default.
#include "cpu/isa.h"

#define FASTRNN_ISA plain
#include "cpu/isa_kernels.h"

namespace fastrnn::cpu {
constinit const InstructionSet kPlain = plain::instruction_set("plain", [] { return true; });
}  // namespace fastrnn::cpu
