// What the plan needs to know of a device.
#include "cuda/launch.h"

namespace fastrnn::cuda {

DeviceLimits device_limits() {
  int device = 0;
  constexpr auto kAsking = "asking for the device";
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), kAsking);
    return value;
  };
  check(cudaGetDevice(&device), kAsking);
  return {.compute_capability =
              10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0};
}

}  // namespace fastrnn::cuda
