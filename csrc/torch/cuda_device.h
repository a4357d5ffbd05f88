// What the ops on CUDA ask of torch: its current stream, its cuBLAS handle, memory of its allocator.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <vector>

namespace fastrnn::cuda {

using torch::stable::accelerator::DeviceGuard;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();  // forgets it: the next kernel's launch, of whoever, is not to blame
  STD_TORCH_CHECK(error == cudaSuccess, "fastrnn: CUDA says ", cudaGetErrorString(error));
}

inline cudaStream_t current_stream(const torch::stable::Tensor& on) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Torch's own, of the current device and thread, on the current stream, with a workspace a CUDA graph may capture.
inline void* blas_handle() {
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  return handle;
}

}  // namespace fastrnn::cuda
