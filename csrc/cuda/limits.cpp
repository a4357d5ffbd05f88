// What the plan needs to know of a device, and of kernels on it. Answers are cached: a scan is planned at every call,
// and a query of CUDA costs as much as a launch.
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/launch.h"

namespace fastrnn::cuda {
namespace {

constexpr auto kAsking = "asking for the device";

struct Device {
  DeviceLimits limits;
  std::map<const void*, int> code_versions;
  std::map<std::tuple<const void*, int, int64_t>, int> blocks;  // by kernel, threads and bytes of shared memory
};

std::mutex devices_mutex;
std::map<int, Device> devices;  // by device number

DeviceLimits ask_limits(int device) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), kAsking);
    return value;
  };
  return {.compute_capability =
              10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount),
          .shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          .cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0};
}

int ask_code_version(const void* kernel) {
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, kernel), "asking what the code is for");
  return code.ptxVersion;
}

int ask_blocks(const void* kernel, int threads, int64_t shared_bytes, const DeviceLimits& limits) {
  constexpr int64_t kSharedUnasked = 48 << 10;
  // The limit belongs to the kernel, not to the launch: raise it to the maximum, since another thread may need more.
  if (shared_bytes > kSharedUnasked)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(limits.shared_bytes_per_block)),
          "asking for shared memory");
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "asking how many blocks fit");
  return blocks;
}

// The caller holds the mutex.
Device& current_device() {
  int number = 0;
  check(cudaGetDevice(&number), kAsking);
  const auto at = devices.find(number);
  return at != devices.end() ? at->second : devices.emplace(number, Device{ask_limits(number), {}, {}}).first->second;
}

// Returns the cached answer for a key, or calls ask() the first time.
template <class Map, class Ask>
int kept(Map& answers, const typename Map::key_type& key, Ask&& ask) {
  const auto at = answers.find(key);
  return at != answers.end() ? at->second : answers.emplace(key, ask()).first->second;
}

}  // namespace

DeviceLimits device_limits() {
  const std::lock_guard lock(devices_mutex);
  return current_device().limits;
}

int code_version(const void* kernel) {
  const std::lock_guard lock(devices_mutex);
  return kept(current_device().code_versions, kernel, [&] { return ask_code_version(kernel); });
}

void remember_refused_launch(cudaError_t error) {
  const std::lock_guard lock(devices_mutex);
  current_device().limits.refused_launch = cudaGetErrorString(error);  // a static string
}

int blocks_at_once(const void* kernel, int threads, int64_t shared_bytes) {
  const std::lock_guard lock(devices_mutex);
  Device& device = current_device();
  const int blocks = kept(device.blocks, {kernel, threads, shared_bytes},
                          [&] { return ask_blocks(kernel, threads, shared_bytes, device.limits); });
  return blocks * device.limits.multiprocessors;
}

}  // namespace fastrnn::cuda
