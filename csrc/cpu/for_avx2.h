// Names AVX2 as the instruction set of what follows. Headers that every set shares come first, for the baseline.
#pragma once

#include <immintrin.h>

#include "cpu/isa.h"

#define FASTRNN_ISA avx2
#define FASTRNN_ISA_AVX2
#pragma GCC target("avx2,fma,f16c")
