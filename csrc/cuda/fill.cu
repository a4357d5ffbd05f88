#include <algorithm>

#include "cuda/fill.h"

namespace fastrnn::cuda {
namespace {

constexpr int kThreads = 256;

constexpr int kUploadValues = 480;  // 3840 bytes: a kernel's arguments may take 4 KB

struct Values {
  int64_t of[kUploadValues];
};

__global__ void upload_kernel(Values values, int count, int64_t* out) {
  for (int i = threadIdx.x; i < count; i += kThreads) out[i] = values.of[i];
}

// A thread writes four elements, the words of one block of the generator.
template <class U>
__global__ void mask_kernel(MaskParams mask, const int64_t* seeds, int64_t size, int64_t blocks_of_mask, int64_t blocks,
                            U* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < blocks; i += stride) {
    const int64_t seed = i / blocks_of_mask, block = i % blocks_of_mask;
    const PhiloxWords bits = dropout_bits(static_cast<uint64_t>(seeds[seed]), mask.stream, block);
    for (int64_t k = 0; k < 4 && 4 * block + k < size; ++k)
      out[seed * size + 4 * block + k] = bits.word[k] >= mask.threshold ? static_cast<U>(mask.kept) : U{0};
  }
}

}  // namespace

cudaError_t upload(const int64_t* values, int64_t count, int64_t* out, cudaStream_t stream) {
  for (int64_t begin = 0; begin < count; begin += kUploadValues) {
    const int part = static_cast<int>(std::min<int64_t>(kUploadValues, count - begin));
    Values arguments;
    std::copy_n(values + begin, part, arguments.of);
    upload_kernel<<<1, kThreads, 0, stream>>>(arguments, part, out + begin);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  return cudaSuccess;
}

template <class U>
cudaError_t write_masks(const MaskParams& mask, const int64_t* seeds, int64_t seed_count, int64_t size, U* out,
                        cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 4096;  // enough to fill any GPU; their threads loop
  const int64_t blocks_of_mask = (size + 3) / 4, blocks = seed_count * blocks_of_mask;
  const auto grid = static_cast<unsigned>(std::min((blocks + kThreads - 1) / kThreads, kMostBlocks));
  mask_kernel<<<grid, kThreads, 0, stream>>>(mask, seeds, size, blocks_of_mask, blocks, out);
  return cudaGetLastError();
}

template cudaError_t write_masks(const MaskParams&, const int64_t*, int64_t, int64_t, uint16_t*, cudaStream_t);
template cudaError_t write_masks(const MaskParams&, const int64_t*, int64_t, int64_t, uint32_t*, cudaStream_t);
template cudaError_t write_masks(const MaskParams&, const int64_t*, int64_t, int64_t, uint64_t*, cudaStream_t);

}  // namespace fastrnn::cuda
