// Names NEON as the instruction set of what follows. Headers that every set shares come first, for the baseline.
#pragma once

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "cpu/compilers.h"
#include "cpu/isa.h"

#define FASTRNN_ISA neon
#define FASTRNN_ISA_NEON
#define FASTRNN_END_ISA
