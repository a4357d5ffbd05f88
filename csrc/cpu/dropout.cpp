// dropout_mask on CPU: from tensors to the kernel of one instruction set.
#include "dropout.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "checks.h"
#include "cpu/machine.h"

namespace fastrnn::cpu {
namespace {

// Threads share a mask in parts of so many elements, which one writes in some microseconds.
constexpr int64_t kPart = 64 * kMaskUnit;
constexpr int64_t kPartsPerThread = 4;

// The bits of what is kept, in the type of an element.
uint64_t kept_bits(ScalarType dtype, double scale) {
  switch (dtype) {
    case ScalarType::Float: return std::bit_cast<uint32_t>(static_cast<float>(scale));
    case ScalarType::Double: return std::bit_cast<uint64_t>(scale);
    case ScalarType::BFloat16: return to_bfloat16(static_cast<float>(scale)).bits;
    case ScalarType::Half: return to_half(static_cast<float>(scale)).bits;
    default: STD_TORCH_CHECK(false, "fastrnn: no dropout mask of dtype ", static_cast<int>(dtype));
  }
}

// seed [*S] -> [*S, *shape], a mask for each seed
Tensor dropout_mask(Tensor seed, int64_t stream, std::vector<int64_t> shape, double p, ScalarType dtype) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, "fastrnn: seed has dtype ",
                  static_cast<int>(seed.scalar_type()), ", expected int64");
  STD_TORCH_CHECK(0 <= p && p <= 1, "fastrnn: p is ", p, ", expected 0 <= p <= 1");
  const auto [threshold, scale] = DropoutRule::of(p);
  const MaskParams params{static_cast<uint64_t>(stream), threshold, kept_bits(dtype, scale)};

  const auto seeds_shape = seed.sizes();
  shape.insert(shape.begin(), seeds_shape.begin(), seeds_shape.end());
  Tensor mask = torch::stable::new_empty(seed, shape, dtype);
  if (mask.numel() == 0) return mask;
  prefer_huge_pages(mask.mutable_data_ptr(), mask.numel() * mask.element_size());  // as for a sequence
  const Tensor seeds = torch::stable::contiguous(seed);
  const int64_t* seed_data = data_of<const int64_t>(seeds);
  const int64_t size = mask.numel() / seeds.numel();  // of a mask
  const int64_t parts = (size + kPart - 1) / kPart;
  const auto write = [&](auto kernel, auto* out) {
    for_ranges(seeds.numel() * parts, kPartsPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = i / parts, first = i % parts * kPart;
        kernel(params, static_cast<uint64_t>(seed_data[s]), first, std::min(first + kPart, size),
               out + s * size + first);
      }
    });
  };
  const MaskKernels& kernels = instruction_set().masks;
  switch (mask.element_size()) {
    case 2: write(kernels.of_16_bits, data_of<uint16_t>(mask)); break;
    case 4: write(kernels.of_32_bits, data_of<uint32_t>(mask)); break;
    default: write(kernels.of_64_bits, data_of<uint64_t>(mask));
  }
  return mask;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("dropout_mask", TORCH_BOX(&dropout_mask)); }

}  // namespace
}  // namespace fastrnn::cpu
