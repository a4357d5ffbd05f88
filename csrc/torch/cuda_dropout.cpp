// dropout_mask on CUDA.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "cuda/fill.h"
#include "torch/cuda_device.h"
#include "torch/dropout_op.h"

namespace fastrnn::cuda {
namespace {

// seed [*S] -> [*S, *shape], a mask for each seed, which stays where it is
Tensor dropout_mask(Tensor seed, int64_t stream, std::vector<int64_t> shape, double p, ScalarType dtype) {
  const DeviceGuard guard(seed.get_device_index());
  const auto [mask, seeds, size, params] = new_mask(seed, stream, shape, p, dtype);
  if (size == 0) return mask;
  with_mask_bits(mask, [&]<class U>(U* out) {
    check(write_masks(params, data_of<const int64_t>(seeds), seeds.numel(), size, out, current_stream(seed)));
  });
  return mask;
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) { m.impl("dropout_mask", TORCH_BOX(&dropout_mask)); }

}  // namespace
}  // namespace fastrnn::cuda
