// Kernels that fill memory, without torch: with what the host knows, with a mask of dropout.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dropout.h"

namespace fastrnn::cuda {

// Host values to device memory, as arguments of kernels: a copy would need page-locked memory that outlives it, and a
// CUDA graph would read that memory again at every replay.
cudaError_t upload(const int64_t* values, int64_t count, int64_t* out, cudaStream_t stream);

// The masks of some seeds, one after the other, for each width of an element.
template <class U>
cudaError_t write_masks(const MaskParams& mask, const int64_t* seeds, int64_t seed_count, int64_t size, U* out,
                        cudaStream_t stream);

}  // namespace fastrnn::cuda
