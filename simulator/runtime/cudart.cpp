// Stands in for libcudart.so.13: the unchanged host code finds this library first. Streams are in order and everything
// is done at once, so a copy or launch has happened when its call returns. Mistakes of the host that a GPU would answer
// with silence or a corrupt context become findings.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "memory.h"

namespace {

using namespace sim;

struct CallConfiguration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::vector<CallConfiguration> configurations;

// Host functions and the kernels behind them; the address of an entry serves as cudaKernel_t.
std::unordered_map<const void*, std::string>& host_functions() {
  static auto* const map = new std::unordered_map<const void*, std::string>;
  return *map;
}
std::unordered_map<const void*, std::string>& host_variables() {
  static auto* const map = new std::unordered_map<const void*, std::string>;
  return *map;
}

std::recursive_mutex& engine_lock() {
  static auto* const mutex = new std::recursive_mutex;
  return *mutex;
}

cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void host_finding(const char* call, const char* kind, const std::string& text) {
  const Site site{call, 0, nullptr, 0, "host call"};
  add_finding(kind, text, &site, nullptr);
}

const std::string* kernel_name(const void* function) {
  const auto at = host_functions().find(function);
  if (at != host_functions().end()) return &at->second;
  for (const auto& [host, name] : host_functions())
    if (&name == function) return &name;
  return nullptr;
}

const KernelInfo* kernel_of(const void* function, const char* call) {
  const std::string* name = kernel_name(function);
  if (!name) return nullptr;
  auto at = machine().kernels.find(*name);
  if (at == machine().kernels.end() && machine().provide_kernel) {
    machine().provide_kernel(*name);
    at = machine().kernels.find(*name);
  }
  if (at != machine().kernels.end()) return &at->second;
  host_finding(call, "kernel without translation", *name + " was not translated: load its module first");
  return nullptr;
}

cudaError_t start(const char* call, const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                  bool cooperative) {
  const std::lock_guard lock(engine_lock());
  const KernelInfo* kernel = kernel_of(function, call);
  if (!kernel) return done(cudaErrorInvalidDeviceFunction);
  if (const int refused = machine().device.cooperative_error; refused && cooperative)
    return done(static_cast<cudaError_t>(refused));
  std::vector<std::byte> params(std::max(kernel->param_bytes, 1u));
  for (uint32_t i = 0; i < kernel->param_count; ++i)
    std::memcpy(&params[kernel->params[i].offset], arguments[i], kernel->params[i].bytes);
  LaunchRequest request{
      kernel,       {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, static_cast<uint32_t>(shared), cooperative,
      params.data()};
  return done(static_cast<cudaError_t>(launch(request)));
}

// 0 is the current device too, as there is no other.
bool is_current(int device) { return device == 0 || device == number_of(machine().device); }

bool on_device(const void* p) {
  const auto address = reinterpret_cast<uint64_t>(p);
  return address >= kMemory && address < kEnd;
}

// Whether the block holds the range; says so in a finding if not.
bool check_range(const char* call, const void* p, size_t size) {
  const auto address = reinterpret_cast<uint64_t>(p);
  const uint64_t alive = alive_prefix(address, size);
  if (alive == size) return true;
  host_finding(call, states(address)[alive] & kFreed ? "use after free" : "out of bounds",
               "the range of " + std::to_string(size) + " bytes leaves its block after " + std::to_string(alive));
  return false;
}

cudaError_t copy(const char* call, void* to, const void* from, size_t size) {
  const std::lock_guard lock(engine_lock());
  if (size == 0) return cudaSuccess;
  if ((on_device(to) && !check_range(call, to, size)) || (on_device(from) && !check_range(call, from, size)))
    return done(cudaErrorInvalidValue);
  std::memmove(to, from, size);
  if (!on_device(to)) return cudaSuccess;
  uint8_t* const state = states(reinterpret_cast<uint64_t>(to));
  if (on_device(from))
    std::memmove(state, states(reinterpret_cast<uint64_t>(from)), size);
  else
    mark_written(reinterpret_cast<uint64_t>(to), size);
  return cudaSuccess;
}

cudaError_t set(const char* call, void* to, int value, size_t size) {
  const std::lock_guard lock(engine_lock());
  if (size == 0) return cudaSuccess;
  if (!on_device(to)) return done(cudaErrorInvalidValue);
  if (!check_range(call, to, size)) return done(cudaErrorInvalidValue);
  std::memset(to, value, size);
  mark_written(reinterpret_cast<uint64_t>(to), size);
  return cudaSuccess;
}

uint32_t dynamic_limit_of(const KernelInfo& kernel) {
  const auto at = machine().dynamic_shared_limit.find(kernel.name);
  return at == machine().dynamic_shared_limit.end() ? 48 * 1024 - kernel.static_shared_bytes : at->second;
}

struct Event {
  std::chrono::steady_clock::time_point time;
};

}  // namespace

// The real library gives its symbols this version; host code linked against it asks for it.
extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard lock(engine_lock());
  host_functions()[host] = name;
}
void __cudaRegisterVar(void**, char* host, char*, const char* name, int, size_t, int, int) {
  const std::lock_guard lock(engine_lock());
  host_variables()[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configurations.push_back({grid, block, shared, static_cast<cudaStream_t>(stream)});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return done(cudaErrorMissingConfiguration);
  const CallConfiguration& top = configurations.back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  configurations.pop_back();
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  const std::lock_guard lock(engine_lock());
  const std::string* name = kernel_name(function);
  if (!name) return done(cudaErrorInvalidDeviceFunction);
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<std::string*>(name));
  return cudaSuccess;
}
cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* function) { return __cudaGetKernel(kernel, function); }

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  return start("<<<>>>", kernel, grid, block, arguments, shared, false);
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t) {
  return start("cudaLaunchKernel", function, grid, block, arguments, shared, false);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                        cudaStream_t) {
  return start("cudaLaunchCooperativeKernel", function, grid, block, arguments, shared, true);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = attribute.val.clusterDim;
      if (cluster.x * cluster.y * cluster.z > 1) {
        host_finding("cudaLaunchKernelExC", "not simulated", "clusters of more than one block");
        return done(cudaErrorNotSupported);
      }
    }
  }
  return start("cudaLaunchKernelExC", function, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes,
               cooperative);
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard lock(engine_lock());
  ++machine().queries;
  const KernelInfo* kernel = kernel_of(function, "cudaFuncSetAttribute");
  if (!kernel) return done(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value + kernel->static_shared_bytes > machine().device.shared_per_block)
    return done(cudaErrorInvalidValue);
  machine().dynamic_shared_limit[kernel->name] = value;
  return cudaSuccess;
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
  const std::lock_guard lock(engine_lock());
  ++machine().queries;
  const KernelInfo* kernel = kernel_of(function, "cudaFuncGetAttributes");
  if (!kernel) return done(cudaErrorInvalidDeviceFunction);
  *out = {};
  out->sharedSizeBytes = kernel->static_shared_bytes;
  out->localSizeBytes = kernel->local_bytes;
  out->numRegs = registers_of(*kernel);
  const int by_registers = machine().device.registers_per_sm / ((out->numRegs + 7) / 8 * 8) / 128 * 128;
  out->maxThreadsPerBlock = std::min(kernel->max_threads ? int(kernel->max_threads) : 1024, by_registers);
  out->maxDynamicSharedSizeBytes = dynamic_limit_of(*kernel);
  const Device& device = machine().device;
  out->binaryVersion = device.major * 10 + device.minor;
  out->ptxVersion = device.ptx_version ? device.ptx_version : out->binaryVersion;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   size_t dynamic_shared, unsigned) {
  const std::lock_guard lock(engine_lock());
  ++machine().queries;
  const KernelInfo* kernel = kernel_of(function, "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  if (!kernel) return done(cudaErrorInvalidDeviceFunction);
  if (threads <= 0) return done(cudaErrorInvalidValue);
  const uint32_t shared = (kernel->static_shared_bytes + 15) / 16 * 16 + dynamic_shared;
  const bool fits = threads <= 1024 && dynamic_shared <= dynamic_limit_of(*kernel) &&
                    (kernel->max_threads == 0 || threads <= int(kernel->max_threads));
  *blocks = fits ? blocks_per_sm(machine().device, threads, registers_of(*kernel), shared) : 0;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic_shared, 0);
}

cudaError_t cudaGetDevice(int* device) {
  const std::lock_guard lock(engine_lock());
  *device = number_of(machine().device);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return is_current(device) ? cudaSuccess : done(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const std::lock_guard lock(engine_lock());
  if (!is_current(device)) return done(cudaErrorInvalidDevice);
  ++machine().queries;
  const Device& d = machine().device;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7FFFFFFF; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = d.shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = d.shared_per_sm; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = d.shared_reserved; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = d.registers_per_sm; break;
    case cudaDevAttrClockRate: *value = d.clock_khz; break;
    case cudaDevAttrMultiProcessorCount: *value = d.sms; break;
    case cudaDevAttrL2CacheSize: *value = static_cast<int>(d.l2_bytes); break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = d.threads_per_sm; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = d.blocks_per_sm; break;
    case cudaDevAttrComputeCapabilityMajor: *value = d.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = d.minor; break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrClusterLaunch: *value = 0; break;
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default:
      host_finding("cudaDeviceGetAttribute", "not simulated", "attribute " + std::to_string(attribute));
      return done(cudaErrorNotSupported);
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  const std::lock_guard lock(engine_lock());
  if (!is_current(device)) return done(cudaErrorInvalidDevice);
  ++machine().queries;
  const Device& d = machine().device;
  *out = {};
  std::snprintf(out->name, sizeof out->name, "simulated %s", d.name);
  out->totalGlobalMem = d.memory_bytes;
  out->sharedMemPerBlock = 48 * 1024;
  out->regsPerBlock = 65536;
  out->warpSize = 32;
  out->maxThreadsPerBlock = 1024;
  out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024, out->maxThreadsDim[2] = 64;
  out->maxGridSize[0] = 0x7FFFFFFF, out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->major = d.major;
  out->minor = d.minor;
  out->multiProcessorCount = d.sms;
  out->unifiedAddressing = 1;
  out->l2CacheSize = static_cast<int>(d.l2_bytes);
  out->maxThreadsPerMultiProcessor = d.threads_per_sm;
  out->sharedMemPerMultiprocessor = d.shared_per_sm;
  out->regsPerMultiprocessor = d.registers_per_sm;
  out->cooperativeLaunch = 1;
  out->sharedMemPerBlockOptin = d.shared_per_block;
  out->maxBlocksPerMultiProcessor = d.blocks_per_sm;
  out->reservedSharedMemPerBlock = d.shared_reserved;
  out->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t size) {
  const std::lock_guard lock(engine_lock());
  *out = size == 0 ? nullptr : reinterpret_cast<void*>(heap().allocate(size));
  return size == 0 || *out ? cudaSuccess : done(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* p) {
  const std::lock_guard lock(engine_lock());
  if (!p || heap().release(reinterpret_cast<uint64_t>(p))) return cudaSuccess;
  host_finding("cudaFree", "invalid free", "no live block begins at this address");
  return done(cudaErrorInvalidValue);
}
cudaError_t cudaMallocAsync(void** out, size_t size, cudaStream_t) { return cudaMalloc(out, size); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMallocHost(void** out, size_t size) {
  *out = std::malloc(size);
  return *out ? cudaSuccess : done(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void* p) {
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard lock(engine_lock());
  *total_bytes = machine().device.memory_bytes;
  *free_bytes = *total_bytes - heap().live_bytes();
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  return copy("cudaMemcpy", to, from, size);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  return copy("cudaMemcpyAsync", to, from, size);
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return set("cudaMemset", to, value, size); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  return set("cudaMemsetAsync", to, value, size);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
  if (width > to_pitch || width > from_pitch) return done(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row) {
    const cudaError_t error = copy("cudaMemcpy2D", static_cast<char*>(to) + row * to_pitch,
                                   static_cast<const char*>(from) + row * from_pitch, width);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
}
cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  if (width > pitch) return done(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row) {
    const cudaError_t error = set("cudaMemset2D", static_cast<char*>(to) + row * pitch, value, width);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return cudaMemset2DAsync(to, pitch, value, width, height, nullptr);
}

cudaError_t cudaGetSymbolAddress(void** out, const void* symbol) {
  const std::lock_guard lock(engine_lock());
  const auto variable = host_variables().find(symbol);
  if (variable == host_variables().end()) return done(cudaErrorInvalidSymbol);
  const auto at = machine().globals.find(variable->second);
  if (at == machine().globals.end()) return done(cudaErrorInvalidSymbol);
  *out = reinterpret_cast<void*>(at->second.first);
  return cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t size, size_t offset, cudaMemcpyKind) {
  void* to;
  const cudaError_t error = cudaGetSymbolAddress(&to, symbol);
  return error != cudaSuccess ? error : copy("cudaMemcpyToSymbol", static_cast<char*>(to) + offset, from, size);
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t size, size_t offset, cudaMemcpyKind) {
  void* from;
  const cudaError_t error = cudaGetSymbolAddress(&from, symbol);
  return error != cudaSuccess ? error : copy("cudaMemcpyFromSymbol", to, static_cast<char*>(from) + offset, size);
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete reinterpret_cast<char*>(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Event{std::chrono::steady_clock::now()});
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  reinterpret_cast<Event*>(event)->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
  *ms = std::chrono::duration<float, std::milli>(reinterpret_cast<Event*>(to)->time -
                                                 reinterpret_cast<Event*>(from)->time)
            .count();
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidPitchValue: return "cudaErrorInvalidPitchValue";
    case cudaErrorInvalidSymbol: return "cudaErrorInvalidSymbol";
    case cudaErrorMissingConfiguration: return "cudaErrorMissingConfiguration";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchTimeout: return "cudaErrorLaunchTimeout";
    case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge: return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "unrecognized error code";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorLaunchTimeout: return "the launch timed out and was terminated";
    case cudaErrorMisalignedAddress: return "misaligned address";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
    case cudaErrorNotSupported: return "operation not supported";
    default: return cudaGetErrorName(error);
  }
}

}  // extern "C"
