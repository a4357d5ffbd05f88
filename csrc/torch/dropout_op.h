// dropout_mask on every device: its arguments, and the mask to fill.
#pragma once

#include <bit>
#include <vector>

#include "dropout.h"
#include "torch/checks.h"

namespace fastrnn {

struct NewMask {
  Tensor mask;   // [*S, *shape]
  Tensor seeds;  // [*S] int64, dense
  int64_t size;  // elements of the mask of a seed
  MaskParams params;
};

// The bits of what is kept, in the type of an element.
inline uint64_t kept_bits(ScalarType dtype, double scale) {
  switch (dtype) {
    case ScalarType::Float: return std::bit_cast<uint32_t>(static_cast<float>(scale));
    case ScalarType::Double: return std::bit_cast<uint64_t>(scale);
    case ScalarType::BFloat16: return to_bfloat16(static_cast<float>(scale)).bits;
    case ScalarType::Half: return to_half(static_cast<float>(scale)).bits;
    default: STD_TORCH_CHECK(false, "fastrnn: no dropout mask of dtype ", static_cast<int>(dtype));
  }
}

inline NewMask new_mask(const Tensor& seed, int64_t stream, std::vector<int64_t> shape, double p, ScalarType dtype) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, "fastrnn: seed has dtype ",
                  static_cast<int>(seed.scalar_type()), ", expected int64");
  STD_TORCH_CHECK(0 <= p && p <= 1, "fastrnn: p is ", p, ", expected 0 <= p <= 1");
  const auto [threshold, scale] = DropoutRule::of(p);
  const auto seeds_shape = seed.sizes();
  shape.insert(shape.begin(), seeds_shape.begin(), seeds_shape.end());
  Tensor mask = torch::stable::new_empty(seed, shape, dtype);
  const int64_t size = mask.numel() == 0 ? 0 : mask.numel() / seed.numel();
  return {
      mask, torch::stable::contiguous(seed), size, {static_cast<uint64_t>(stream), threshold, kept_bits(dtype, scale)}};
}

// f(data) with the mask's elements as unsigned numbers of their width.
template <class F>
auto with_mask_bits(const Tensor& mask, F&& f) {
  switch (mask.element_size()) {
    case 2: return f(data_of<uint16_t>(mask));
    case 4: return f(data_of<uint32_t>(mask));
    default: return f(data_of<uint64_t>(mask));
  }
}

}  // namespace fastrnn
