// What the plan needs to know of a device.
#include "cuda/launch.h"

namespace fastrnn::cuda {

DeviceLimits device_limits() {
  int device = 0;
  const auto check = [](cudaError_t error) {
    if (error != cudaSuccess) throw LaunchError(std::string("asking for the device: ") + cudaGetErrorString(error));
  };
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  check(cudaGetDevice(&device));
  return {.compute_capability =
              10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0};
}

}  // namespace fastrnn::cuda
