// dropout_mask on CPU: from tensors to the kernel of one instruction set.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "torch/dropout_op.h"
#include "torch/instruction_sets.h"

namespace fastrnn::cpu {
namespace {

// Threads share a mask in parts of so many elements, which one writes in some microseconds.
constexpr int64_t kPart = 64 * kMaskUnit;
constexpr int64_t kPartsPerThread = 4;

// seed [*S] -> [*S, *shape], a mask for each seed
Tensor dropout_mask(Tensor seed, int64_t stream, std::vector<int64_t> shape, double p, ScalarType dtype) {
  const auto [mask, seeds, size, params] = new_mask(seed, stream, shape, p, dtype);
  if (size == 0) return mask;
  prefer_huge_pages(mask.mutable_data_ptr(), mask.numel() * mask.element_size());  // as for a sequence
  const int64_t* seed_data = data_of<const int64_t>(seeds);
  const int64_t parts = (size + kPart - 1) / kPart;
  const MaskKernels& kernels = instruction_set().masks;
  with_mask_bits(mask, [&]<class U>(U* out) {
    for_ranges(seeds.numel() * parts, kPartsPerThread, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t s = i / parts, first = i % parts * kPart;
        kernels.kernel<U>()(params, static_cast<uint64_t>(seed_data[s]), first, std::min(first + kPart, size),
                            out + s * size + first);
      }
    });
  });
  return mask;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("dropout_mask", TORCH_BOX(&dropout_mask)); }

}  // namespace
}  // namespace fastrnn::cpu
