// Names the compiler's default as the instruction set of what follows.
#pragma once

#include "cpu/compilers.h"
#include "cpu/isa.h"

#define FASTRNN_ISA plain
#define FASTRNN_END_ISA
