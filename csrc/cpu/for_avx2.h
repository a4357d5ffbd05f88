// Names AVX2 as the instruction set of what follows, up to FASTRNN_END_ISA. Headers that every set shares come first,
// for the baseline.
#pragma once

#include <immintrin.h>

#include "cpu/compilers.h"
#include "cpu/isa.h"

#define FASTRNN_ISA avx2
#define FASTRNN_ISA_AVX2
#define FASTRNN_END_ISA FASTRNN_END_TARGET
FASTRNN_TARGET("avx2,fma,f16c")
