// The functions that cells call, of each instruction set over arrays: functions_<set>.cpp fill the tables, and
// test_functions.cpp reads them.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <tuple>

#include "cpu/kernels.h"
#include "dtypes.h"

namespace fastrnn::test {

// Numbers are a multiple of this many, so that vectors are full.
constexpr int64_t kFull = 64;

template <class S>
struct Function {
  std::string_view name;
  void (*run)(const S* x, S* y, int64_t n);
};

template <class S>
struct BinaryFunction {
  std::string_view name;
  void (*run)(const S* a, const S* b, S* y, int64_t n);
};

template <class S>
struct Table {
  std::array<Function<S>, 6> functions;
  std::array<BinaryFunction<S>, 9> binary_functions;
};

struct FunctionsOfSet {
  const cpu::InstructionSet& set;
  std::tuple<Table<float>, Table<double>, Table<Dual<float>>, Table<Dual<double>>> tables;
};

extern const FunctionsOfSet kAvx512Functions, kAvx2Functions, kNeonFunctions, kPlainFunctions;

}  // namespace fastrnn::test
