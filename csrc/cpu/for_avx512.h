// Names AVX512 as the instruction set of what follows, up to FASTRNN_END_ISA. Headers that every set shares come first,
// for the baseline.
#pragma once

#include <immintrin.h>

#include "cpu/compilers.h"
#include "cpu/isa.h"

#define FASTRNN_ISA avx512
#define FASTRNN_ISA_AVX512
#define FASTRNN_END_ISA FASTRNN_END_TARGET
FASTRNN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
