// What the kernels of every instruction set share, and the table through which one set is called.
//
// It is compiled for the baseline: a file includes it before it names its instruction set.
#pragma once

#include <string_view>
#include <tuple>

#include "cpu/buffer.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "scan.h"

namespace fastrnn {
struct MaskParams;  // dropout.h
}

namespace fastrnn::cpu {

// People read here what the kernels would do with a scan.
struct Choice {
  std::string_view not_in_lanes;  // why samples do not lie in the lanes; empty: they do
  bool packs = false;             // weights are packed ahead
  bool leaves_threads = false;    // threads without a part in a step make the next input products
  Grid grid{1, 1};                // of the forward steps
  int64_t forward_chunk = 0;      // steps
  int64_t backward_chunk = 0;
  int64_t forward_unit_vecs = 0;  // a panel has so many vectors of units at most
  int64_t backward_unit_vecs = 0;
};

// The kernels of one instruction set for one storage type.
template <class S>
struct Kernels {
  void (*forward)(std::string_view cell, const ScanParams<S>&, const Team&);
  void (*backward)(std::string_view cell, const ScanParams<S>&, const ScanGradients<S>&, const Team&);
  Choice (*choice)(std::string_view cell, const ScanParams<S>&, const Team&);
  // Packs the weights for ScanParams::packed, as params.packed_as says; params have the weights and their sizes.
  int64_t (*packed_bytes)(std::string_view cell, const ScanParams<S>&);
  void (*pack)(std::string_view cell, const ScanParams<S>&, char* out);
};

// A kernel writes so many elements of a mask at once.
constexpr int64_t kMaskUnit = 64;

// A kernel writes elements begin, a multiple of kMaskUnit, to end of a seed's mask; there is one for every width.
struct MaskKernels {
  template <class U>
  using Kernel = void (*)(const MaskParams&, uint64_t seed, int64_t begin, int64_t end, U* out);

  Kernel<uint16_t> of_16_bits;
  Kernel<uint32_t> of_32_bits;
  Kernel<uint64_t> of_64_bits;

  template <class U>
  Kernel<U> kernel() const {
    if constexpr (sizeof(U) == 2)
      return of_16_bits;
    else if constexpr (sizeof(U) == 4)
      return of_32_bits;
    else
      return of_64_bits;
  }
};

struct InstructionSet {
  std::string_view name;  // as in FASTRNN_CPU_ISA
  bool (*runs_here)();
  MaskKernels masks;
  std::tuple<Kernels<float>, Kernels<double>, Kernels<BFloat16>, Kernels<Half>, Kernels<Dual<float>>,
             Kernels<Dual<double>>, Kernels<RoundedFloat>>
      own;
  const InstructionSet* rest = nullptr;  // its kernels are taken for types that the set lacks

  template <class S>
  bool provides() const {
    return std::get<Kernels<S>>(own).forward != nullptr;
  }
  // False where a build leaves the type out.
  template <class S>
  bool has() const {
    return provides<S>() || (rest && rest->has<S>());
  }
  template <class S>
  const Kernels<S>& kernels() const {
    return provides<S>() ? std::get<Kernels<S>>(own) : rest->kernels<S>();
  }
};

#if defined(__x86_64__)
extern const InstructionSet kAmx;
extern const InstructionSet kAvx512Bf16;
extern const InstructionSet kAvx512;
extern const InstructionSet kAvx2;
#elif defined(__aarch64__)
extern const InstructionSet kNeonBf16;
extern const InstructionSet kNeon;
#endif
extern const InstructionSet kPlain;

}  // namespace fastrnn::cpu
