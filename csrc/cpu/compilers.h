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
