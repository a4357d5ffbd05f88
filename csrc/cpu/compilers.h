// What g++ and clang say in ways of their own.
#pragma once

#define FASTRNN_PRAGMA(text) _Pragma(#text)

// FASTRNN_TARGET("avx2,fma") lets the functions that follow use these instructions, up to FASTRNN_END_TARGET. (g++
// does so up to the end of the file.) FASTRNN_UNROLL(n) stands before a loop of at most n rounds.
#if defined(__clang__)
#define FASTRNN_TARGET(features) \
  FASTRNN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTRNN_END_TARGET FASTRNN_PRAGMA(clang attribute pop)
#define FASTRNN_UNROLL(n) FASTRNN_PRAGMA(clang loop unroll(full))
#else
#define FASTRNN_TARGET(features) FASTRNN_PRAGMA(GCC target(features))
#define FASTRNN_END_TARGET
#define FASTRNN_UNROLL(n) FASTRNN_PRAGMA(GCC unroll n)
#endif

// This writes an instruction of 64-bit Arm that the file's target may lack, by its code: operand 0 is the register that
// it adds to, 1 and 2 are its factors. clang's assembler knows only its target's instructions.
#define FASTRNN_ARM_INSTRUCTION(code)                                                                     \
  ".irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n\t" \
  ".equ .Lnumber_of_v\\number,\\number\n\t.endr\n\t"                                                      \
  ".inst " #code " | .Lnumber_of_%0 | .Lnumber_of_%1 << 5 | .Lnumber_of_%2 << 16"
