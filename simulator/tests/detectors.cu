// Kernels with one bug each, and beside each its right twin: the template argument `Right` is the only difference.
// The detectors' tests run both. Host code at the end, for the tests of the runtime's stand-in.
#include <cooperative_groups.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace cg = cooperative_groups;

#define BOTH(name, parameters, arguments)                                      \
  extern "C" __global__ void name##_right parameters { name<true> arguments; } \
  extern "C" __global__ void name##_wrong parameters { name<false> arguments; }

// --- memory
template <bool Right>
__device__ void bounds(float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (Right ? i < n : i <= n) x[i] = i;
}
BOTH(bounds, (float* x, int n), (x, n))

template <bool Right>
__device__ void shared_bounds(float* x) {
  extern __shared__ float dynamic_tile[];
  dynamic_tile[threadIdx.x + (Right ? 0 : 1)] = x[threadIdx.x];
  x[threadIdx.x] = dynamic_tile[threadIdx.x + (Right ? 0 : 1)] + 1;
}
BOTH(shared_bounds, (float* x), (x))

template <bool Right>
__device__ void alignment(float* x) {
  *reinterpret_cast<float4*>(x + 4 * threadIdx.x + (Right ? 0 : 1)) = float4{1, 2, 3, 4};
}
BOTH(alignment, (float* x), (x))

template <bool Right>
__device__ void initialised(float* x) {
  __shared__ float tile[64];
  if (Right || threadIdx.x != 5) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x ^ 1];
}
BOTH(initialised, (float* x), (x))

extern "C" __global__ void copy(float* to, const float* from, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i];
}

// --- races
template <bool Right>
__device__ void shared_race(float* x) {
  __shared__ float tile[128];
  tile[threadIdx.x] = x[threadIdx.x];
  if (Right) __syncthreads();
  x[threadIdx.x] = tile[127 - threadIdx.x];
}
BOTH(shared_race, (float* x), (x))

// The second barrier of a double exchange: without it a fast warp overwrites what a slow one still reads.
template <bool Right>
__device__ void overwritten(float* x, int steps) {
  __shared__ float tile[128];
  float value = x[threadIdx.x];
  for (int t = 0; t < steps; ++t) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % 128];
    if (Right) __syncthreads();
  }
  x[threadIdx.x] = value;
}
BOTH(overwritten, (float* x, int steps), (x, steps))

template <bool Right>
__device__ void warp_race(float* x) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  if (Right) __syncwarp();
  x[threadIdx.x] = tile[31 - threadIdx.x];
}
BOTH(warp_race, (float* x), (x))

template <bool Right>
__device__ void block_race(int* x) {
  if (Right)
    atomicAdd(x, 1);
  else
    x[0] = blockIdx.x;
}
BOTH(block_race, (int* x), (x))

// Bytes and halves of one word by different threads are no race.
extern "C" __global__ void neighbours(uint8_t* bytes, uint16_t* halves) {
  bytes[threadIdx.x] = threadIdx.x;
  halves[threadIdx.x] = threadIdx.x;
}

__device__ void store_relaxed(uint32_t* p, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ uint32_t load_relaxed(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ void load_relaxed(const uint32_t* p, uint32_t (&v)[4]) {
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "l"(p)
               : "memory");
}

// Block 0 hands data to block 1 by a flag.
template <bool Right>
__device__ void message(uint32_t* flag, float* data, float* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
      if (Right) __threadfence();
      store_relaxed(flag, 1);
    }
  } else {
    if (threadIdx.x == 0) {
      while (load_relaxed(flag) != 1) {
      }
      __threadfence();
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
BOTH(message, (uint32_t* flag, float* data, float* out), (flag, data, out))

// One thread's data and flag, without a barrier between them: unfenced, the flag may be seen before the data.
template <bool Right>
__device__ void reordered(uint32_t* flag, float* data, float* out) {
  if (blockIdx.x == 0) {
    for (int i = 0; i < 16; ++i) data[i] = i + 1;
    if (Right) __threadfence();
    store_relaxed(flag, 1);
  } else {
    while (load_relaxed(flag) != 1) {
    }
    __threadfence();
    for (int i = 0; i < 16; ++i) out[i] = data[i];
  }
}
BOTH(reordered, (uint32_t* flag, float* data, float* out), (flag, data, out))

// Only thread 0's own writes are published: a fence does not speak for those who have not met it.
template <bool Right>
__device__ void lonely_publisher(uint32_t* flag, float* data, float* out) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = threadIdx.x + 1;
    if (Right) __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      store_relaxed(flag, 1);
    }
  } else {
    if (threadIdx.x == 0) {
      while (load_relaxed(flag) != 1) {
      }
      __threadfence();
    }
    __syncthreads();
    out[threadIdx.x] = data[threadIdx.x];
  }
}
BOTH(lonely_publisher, (uint32_t* flag, float* data, float* out), (flag, data, out))

// h travels in words that prove their own arrival. Wrong: one word proves four.
template <bool Right>
__device__ void exchange(uint32_t* slots, float* out, int steps) {
  float h = 0;
  for (int t = 0; t < steps; ++t) {
    uint32_t* const slot = slots + t * 256;
    store_relaxed(slot + blockIdx.x * 64 + threadIdx.x, __float_as_uint(h + threadIdx.x + 1));
    uint32_t v[4];
    const uint32_t* const from = slot + (1 - blockIdx.x) * 64 + threadIdx.x / 4 * 4;
    do {
      load_relaxed(from, v);
    } while (Right ? v[0] == ~0u || v[1] == ~0u || v[2] == ~0u || v[3] == ~0u : v[0] == ~0u);
    h = __uint_as_float(v[0]) + __uint_as_float(v[1]) + __uint_as_float(v[2]) + __uint_as_float(v[3]);
    h *= 0.01f;
  }
  out[blockIdx.x * 64 + threadIdx.x] = h;
}
BOTH(exchange, (uint32_t* slots, float* out, int steps), (slots, out, steps))

// Wrong: one load of 64 bits over two stores of 32.
template <bool Right>
__device__ void mixed_sizes(uint32_t* slots, uint32_t* out) {
  if (blockIdx.x == 0) {
    store_relaxed(slots + threadIdx.x, threadIdx.x);
  } else if (Right) {
    uint32_t a, b;
    do {
      asm volatile("ld.relaxed.gpu.global.v2.b32 {%0, %1}, [%2];"
                   : "=r"(a), "=r"(b)
                   : "l"(slots + threadIdx.x / 2 * 2)
                   : "memory");
    } while (a == ~0u || b == ~0u);
    out[threadIdx.x] = a + b;
  } else {
    uint64_t both;
    do {
      asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(both) : "l"(slots + threadIdx.x / 2 * 2) : "memory");
    } while (uint32_t(both) == ~0u || both >> 32 == ~0u);
    out[threadIdx.x] = uint32_t(both) + (both >> 32);
  }
}
BOTH(mixed_sizes, (uint32_t* slots, uint32_t* out), (slots, out))

template <bool Right>
__device__ void async_copy(float* x) {
  __shared__ alignas(16) float tile[128];
  __pipeline_memcpy_async(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
  __pipeline_commit();
  if (Right) __pipeline_wait_prior(0);
  __syncthreads();
  x[128 + threadIdx.x] = tile[127 - threadIdx.x];
}
BOTH(async_copy, (float* x), (x))

// Two stages in flight; wrong: waits for one group too few.
template <bool Right>
__device__ void async_stages(const float* x, float* y, int n) {
  __shared__ alignas(16) float tile[2][128];
  const auto fetch = [&](int k) {
    if (k < n) __pipeline_memcpy_async(&tile[k % 2][4 * threadIdx.x], x + k * 128 + 4 * threadIdx.x, 16);
    __pipeline_commit();
  };
  fetch(0);
  for (int k = 0; k < n; ++k) {
    fetch(k + 1);
    __pipeline_wait_prior(Right ? 1 : 2);
    __syncthreads();
    for (int i = threadIdx.x; i < 128; i += 32) y[k * 128 + i] = tile[k % 2][127 - i];
    __syncthreads();
  }
}
BOTH(async_stages, (const float* x, float* y, int n), (x, y, n))

// --- threads that should meet
template <bool Right>
__device__ void divergent_barrier(float* x) {
  if (Right || threadIdx.x < 48) __syncthreads();
  x[threadIdx.x] = 1;
}
BOTH(divergent_barrier, (float* x), (x))

template <bool Right>
__device__ void two_barriers(float* x) {
  if (Right) {
    __syncthreads();
  } else if (threadIdx.x % 2) {
    asm volatile("bar.sync 0;" ::: "memory");
    x[64] = 1;
  } else {
    asm volatile("bar.sync 0;" ::: "memory");
    x[65] = 1;
  }
  x[threadIdx.x] = 1;
}
BOTH(two_barriers, (float* x), (x))

// Warps 0 and 1 meet at barrier 1, then 2 and 3 take over; wrong: the consumers' count is short.
template <bool Right>
__device__ void named_barriers(float* x) {
  __shared__ float tile[64];
  if (threadIdx.x < 64) {
    tile[threadIdx.x] = threadIdx.x;
    asm volatile("bar.arrive 1, 128;" ::: "memory");
  } else {
    if (Right)
      asm volatile("bar.sync 1, 128;" ::: "memory");
    else
      asm volatile("bar.sync 1, 64;" ::: "memory");
    x[threadIdx.x - 64] = tile[127 - threadIdx.x];
  }
}
BOTH(named_barriers, (float* x), (x))

// A partial mask that one of its lanes never meets.
template <bool Right>
__device__ void deadlock(float* x) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_sync(Right ? 0xFFFF : 0x1FFFF, v, 3);
  if (!Right && threadIdx.x >= 16) __syncthreads();
  x[threadIdx.x] = v;
}
BOTH(deadlock, (float* x), (x))

template <bool Right>
__device__ void livelock(uint32_t* flag) {
  if (threadIdx.x == 0) {
    if (Right) store_relaxed(flag, 1);
    while (load_relaxed(flag) != 1) __nanosleep(20);
  }
}
BOTH(livelock, (uint32_t* flag), (flag))

// Many lanes, whose loads are torn now and then: neither that nor what they read gets them on.
template <bool Right>
__device__ void vector_livelock(const uint32_t* words) {
  uint32_t v[4];
  do {
    load_relaxed(words, v);
  } while (!Right || v[0] == 0 || v[3] == 0);
}
BOTH(vector_livelock, (const uint32_t* words), (words))

template <bool Right>
__device__ void endless(uint32_t* out, uint32_t n) {
  uint32_t x = n;
  while (x != 1 && (!Right || x < 1000)) x = x * 5 + 2;
  *out = x;
}
BOTH(endless, (uint32_t* out, uint32_t n), (out, n))

// Lanes that have left a loop one after the other need not be together behind it, as an .aligned instruction wants
// them.
template <bool Right>
__device__ void uneven_loop(uint32_t* flags, float* out) {
  const int lane = threadIdx.x;
  flags[lane] = 0;
  for (int i = 0; i < lane; ++i) store_relaxed(flags + lane, i);
  if (Right) __syncwarp();
  float c[4] = {};
  const uint32_t one = 0x3c003c00;  // twice 1.0 in half precision
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(one));
  out[lane] = c[0];
}
BOTH(uneven_loop, (uint32_t* flags, float* out), (flags, out))

template <bool Right>
__device__ void traps(float* x) {
  if (!Right && x[threadIdx.x] < 0) __trap();
  x[threadIdx.x] = 0;
}
BOTH(traps, (float* x), (x))

// All blocks wait for each other: right only if all of them are resident.
extern "C" __global__ void all_resident(uint32_t* counter) {
  if (threadIdx.x == 0) {
    atomicAdd(counter, 1);
    while (load_relaxed(counter) < gridDim.x) {
    }
  }
  __syncthreads();
}

extern "C" __global__ void grid_barrier(float* x, int steps) {
  const cg::grid_group grid = cg::this_grid();
  const int i = grid.thread_rank(), n = grid.size();
  for (int t = 0; t < steps; ++t) {
    const float next = x[(i + 1) % n];
    grid.sync();
    x[i] = next + 1;
    grid.sync();
  }
}

// Under a watchdog a lost block is an error instead of a frozen GPU.
extern "C" __global__ void watchdog(uint32_t* flag) {
  uint64_t start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  while (load_relaxed(flag) != 1) {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    if (now - start > 10000000000ull) __trap();
  }
}

// --- counters
extern "C" __global__ void strided(float* x, int stride) {
  extern __shared__ float bank[];
  bank[threadIdx.x * stride] = x[threadIdx.x * stride];
  __syncthreads();
  x[threadIdx.x * stride] = bank[threadIdx.x * stride];
}
extern "C" __global__ void wide(float4* x) {
  extern __shared__ float4 tile4[];
  tile4[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile4[threadIdx.x];
}

// --- host code
extern "C" __attribute__((visibility("default"))) int host_copy(float* to, const float* from, int n) {
  copy<<<(n + 127) / 128, 128>>>(to, from, n);
  return cudaGetLastError();
}
extern "C" __attribute__((visibility("default"))) int host_grid_barrier(float* x, int steps, int blocks, int threads) {
  void* arguments[] = {&x, &steps};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_barrier), dim3(blocks), dim3(threads),
                                     arguments, 0, nullptr);
}
extern "C" __attribute__((visibility("default"))) int host_occupancy(int threads, int shared, int* blocks) {
  const auto kernel = reinterpret_cast<const void*>(strided);
  if (shared > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return cudaGetLastError();
  }
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}
extern "C" __attribute__((visibility("default"))) int host_attribute(int attribute) {
  int value = -1;
  cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(attribute), 0);
  return value;
}
extern "C" __attribute__((visibility("default"))) int host_properties(int* sms, size_t* shared) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  *sms = properties.multiProcessorCount;
  *shared = properties.sharedMemPerBlockOptin;
  return error;
}
