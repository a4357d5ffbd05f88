// The table of one instruction set: its masks and, by their addresses, its scans. A file that includes this and not
// isa_kernels.h compiles no scan.
#pragma once

#include <string_view>
#include <type_traits>

#include "cpu/dropout_kernel.h"
#include "cpu/isa.h"
#include "cpu/isa_scans.h"

namespace fastrnn::FASTRNN_ISA {

// A build for a sanitizer leaves dual numbers out, on which it would spend a quarter of an hour; a quick build has
// float32 alone.
#if defined(FASTRNN_FLOAT32_ALONE)
template <class S>
constexpr bool kBuilt = std::is_same_v<S, float>;
#elif defined(FASTRNN_WITHOUT_DUALS)
template <class S>
constexpr bool kBuilt = !kDual<S>;
#else
template <class S>
constexpr bool kBuilt = true;
#endif

// Returns null pointers where the build leaves the type out.
template <class S>
constexpr Kernels<S> kernels() {
  if constexpr (kBuilt<S>)
    return {ScanKernels<S>::forward, ScanKernels<S>::backward, ScanKernels<S>::choice, ScanKernels<S>::packed_bytes,
            ScanKernels<S>::pack};
  else
    return {};
}

constexpr cpu::InstructionSet instruction_set(std::string_view name, bool (*runs_here)()) {
  return {name,
          runs_here,
          kMaskKernels,
          {kernels<float>(),
           kernels<double>(),
           kernels<BFloat16>(),
           kernels<Half>(),
           kernels<Dual<float>>(),
           kernels<Dual<double>>(),
           {}}};
}

}  // namespace fastrnn::FASTRNN_ISA
