// Names AVX512 as the instruction set of what follows. Headers that every set shares come first, for the baseline.
#pragma once

#include <immintrin.h>

#include "cpu/isa.h"

#define FASTRNN_ISA avx512
#define FASTRNN_ISA_AVX512
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
