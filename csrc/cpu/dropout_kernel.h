// Dropout masks for one instruction set.
//
// There is one kernel for each width of an element. Its loop over blocks of the generator is plain, and the compiler
// vectorizes it.
#pragma once

#include <cstdint>

#include "cpu/isa_scans.h"
#include "dropout.h"

namespace fastrnn::FASTRNN_ISA {

constexpr int64_t kBlocks = cpu::kMaskUnit / 4;

// Writes kMaskUnit elements from block `first`, a multiple of kBlocks, so that all have one upper half of the counter.
template <class U>
FASTRNN_FN void write_unit(const MaskParams& mask, uint64_t seed, uint64_t first, U* out) {
  const auto [stream, threshold, kept] = mask;
  for (int64_t i = 0; i < kBlocks; ++i) {
    const PhiloxWords bits = dropout_bits(seed, stream, first | static_cast<uint32_t>(i));
    for (int64_t k = 0; k < 4; ++k) out[4 * i + k] = bits.word[k] >= threshold ? static_cast<U>(kept) : U{0};
  }
}

// Writes elements [begin, end) of a mask; begin is a multiple of kMaskUnit.
template <class U>
void write_mask(const MaskParams& mask, uint64_t seed, int64_t begin, int64_t end, U* out) {
  for (; begin + cpu::kMaskUnit <= end; begin += cpu::kMaskUnit, out += cpu::kMaskUnit)
    write_unit(mask, seed, begin / 4, out);
  if (begin == end) return;
  U last[cpu::kMaskUnit];
  write_unit(mask, seed, begin / 4, last);
  std::memcpy(out, last, (end - begin) * sizeof(U));
}

constexpr cpu::MaskKernels kMaskKernels{write_mask<uint16_t>, write_mask<uint32_t>, write_mask<uint64_t>};

}  // namespace fastrnn::FASTRNN_ISA
