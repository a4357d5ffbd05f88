// Dropout masks without a state: an element's bits are a pure function of (seed, stream, element), so a mask is the
// same for every number of threads, on every device, and whenever it is computed again.
//
// The bits are Philox4x32-10's, from J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011: the key is the seed, the counter is (element / 4, stream), element % 4 is a word of the result.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtypes.h"

namespace fastrnn {

struct PhiloxWords {
  uint32_t word[4];
};

FASTRNN_FN PhiloxWords philox(PhiloxWords counter, uint64_t key) {
  uint32_t key_0 = static_cast<uint32_t>(key), key_1 = static_cast<uint32_t>(key >> 32);
  auto [a, b, c, d] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product_a = uint64_t{0xD2511F53} * a;
    const uint64_t product_c = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(product_c >> 32) ^ b ^ key_0;
    b = static_cast<uint32_t>(product_c);
    c = static_cast<uint32_t>(product_a >> 32) ^ d ^ key_1;
    d = static_cast<uint32_t>(product_a);
    key_0 += 0x9E3779B9;
    key_1 += 0xBB67AE85;
  }
  return {{a, b, c, d}};
}

// The bits of elements 4 * block to 4 * block + 3.
FASTRNN_FN PhiloxWords dropout_bits(uint64_t seed, uint64_t stream, uint64_t block) {
  return philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(stream),
                  static_cast<uint32_t>(stream >> 32)}},
                seed);
}

// An element is kept, and multiplied by scale, where its bits are at least the threshold.
struct DropoutRule {
  uint32_t threshold;
  double scale;

  // An element is dropped with probability round(p * 2^32) / 2^32, at most 2^-33 away from p. If that is 1, the
  // threshold keeps every element, and the scale is 0.
  FASTRNN_FN static DropoutRule of(double p) {
    const uint64_t dropped = static_cast<uint64_t>(std::llround(p * 0x1p32));
    if (dropped >> 32) return {0, 0.0};
    return {static_cast<uint32_t>(dropped), 1 / (1 - p)};
  }
};

// A dropout mask holds only two values, and is written as their bits.
struct MaskParams {
  uint64_t stream;
  uint32_t threshold;
  uint64_t kept;  // bits of a kept element's factor; a dropped element's factor is 0
};

}  // namespace fastrnn
