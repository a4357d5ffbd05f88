// Kernels that fill device memory without torch: with values from the host, or with a dropout mask.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dropout.h"

namespace fastrnn::cuda {

// Passes host values to device memory as kernel arguments: a copy would need page-locked memory that outlives it, and a
// CUDA graph would read that memory again at every replay.
cudaError_t upload(const int64_t* values, int64_t count, int64_t* out, cudaStream_t stream);

// Writes a mask for each seed, [seed_count, size], in elements of U's width.
template <class U>
cudaError_t write_masks(const MaskParams& mask, const int64_t* seeds, int64_t seed_count, int64_t size, U* out,
                        cudaStream_t stream);

}  // namespace fastrnn::cuda
