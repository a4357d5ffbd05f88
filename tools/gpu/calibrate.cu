// Measures a GPU and prints it as a Machine of csrc/cuda/model.h.
//
//     nvcc -std=c++20 -O3 -arch=native -o calibrate tools/gpu/calibrate.cu && ./calibrate
//
// Every loop that waits for another block gives up after kPatienceNs, so that a lost block is a line in the output and
// not a frozen GPU. Latencies are counted in clocks of a multiprocessor, by the block that waits.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace cg = cooperative_groups;

namespace {

constexpr int kLanes = 32;
constexpr int kRounds = 1000;                      // of what is timed inside a kernel
constexpr uint64_t kPatienceNs = 200'000'000;      // a round trip takes a microsecond
constexpr int64_t kNearBytes = int64_t{16} << 20;  // stays in every L2 that our kernels run on
constexpr int64_t kFarBytes = int64_t{1} << 30;    // fits none

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: CUDA error: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* device_array(int64_t count) {
  T* data = nullptr;
  check(cudaMalloc(&data, count * sizeof(T)), "allocating");
  check(cudaMemset(data, 0, count * sizeof(T)), "clearing");
  return data;
}

template <class T>
std::vector<T> on_host(const T* data, int64_t count) {
  std::vector<T> values(count);
  check(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copying a result");
  return values;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Milliseconds of what launch() puts on the default stream: the median of five.
template <class F>
double milliseconds(F&& launch) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  launch();
  std::vector<double> times;
  for (int i = 0; i < 5; ++i) {
    check(cudaEventRecord(begin), "recording an event");
    launch();
    check(cudaEventRecord(end), "recording an event");
    check(cudaEventSynchronize(end), "waiting for an event");
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, begin, end), "reading an event");
    times.push_back(elapsed);
  }
  return median(times);
}

// --- what kernels are made of --------------------------------------------------------------------------

__device__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ uint32_t load_relaxed(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(word));
  return value;
}

__device__ void store_relaxed(uint32_t* word, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(word), "r"(value));
}

// Whether the word got the value before patience ran out.
__device__ bool wait_for(const uint32_t* word, uint32_t value) {
  uint64_t until = 0;
  for (int polls = 1; load_relaxed(word) != value; ++polls) {
    if (polls % 1024 != 0) continue;
    const uint64_t now = nanoseconds();
    if (until == 0) until = now + kPatienceNs;
    if (now > until) return false;
  }
  return true;
}

// --- clocks ----------------------------------------------------------------------------------------------

// out: clocks and nanoseconds of a busy loop, and the smallest step of %globaltimer.
__global__ void clocks(uint64_t* out) {
  uint64_t step = ~0ull, last = nanoseconds();
  for (int i = 0; i < 200'000; ++i) {
    const uint64_t now = nanoseconds();
    if (now != last) step = min(step, now - last);
    last = now;
  }
  const uint64_t begin_ns = nanoseconds();
  const int64_t begin = clock64();
  while (clock64() - begin < 50'000'000) continue;
  out[0] = clock64() - begin;
  out[1] = nanoseconds() - begin_ns;
  out[2] = step;
}

// --- words that travel --------------------------------------------------------------------------------------

// Lines of 128 bytes: a word that travels has one to itself.
constexpr int kLineWords = 32;

// Block 0 and block `partner` answer each other. clocks: of a round trip, 0 if one was lost.
__global__ void ping_pong(uint32_t* words, int partner, double* clocks) {
  if (threadIdx.x != 0 || (blockIdx.x != 0 && static_cast<int>(blockIdx.x) != partner)) return;
  const bool first = blockIdx.x == 0;
  uint32_t* const mine = words + (first ? 0 : kLineWords);
  const uint32_t* const theirs = words + (first ? kLineWords : 0);
  int64_t begin = 0;
  for (uint32_t round = 1; round <= kRounds; ++round) {
    if (round == kRounds / 10) begin = clock64();
    if (first) store_relaxed(mine, round);
    if (!wait_for(theirs, round)) return;
    if (!first) store_relaxed(mine, round);
  }
  if (first) *clocks = static_cast<double>(clock64() - begin) / (kRounds - kRounds / 10);
}

// Block 0 tells `readers` others, and waits for an answer of each: thread i for that of block i + 1.
__global__ void broadcast(uint32_t* words, int readers, double* clocks) {
  if (static_cast<int>(blockIdx.x) > readers) return;
  int64_t begin = 0;
  for (uint32_t round = 1; round <= kRounds; ++round) {
    if (blockIdx.x == 0) {
      if (round == kRounds / 10) begin = clock64();
      if (threadIdx.x == 0) store_relaxed(words, round);
      bool answered = true;
      for (int reader = threadIdx.x; reader < readers; reader += blockDim.x)
        answered &= wait_for(words + (1 + reader) * kLineWords, round);
      if (!__syncthreads_and(answered)) return;
    } else if (threadIdx.x == 0) {
      if (!wait_for(words, round)) return;
      store_relaxed(words + blockIdx.x * kLineWords, round);
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = static_cast<double>(clock64() - begin) / (kRounds - kRounds / 10);
}

// A chain of strong loads, each of which says where the next one lies.
__global__ void chase(const uint32_t* next, double* clocks) {
  uint32_t at = 0;
  for (int i = 0; i < kRounds; ++i) at = load_relaxed(next + at);
  const int64_t begin = clock64();
  for (int i = 0; i < kRounds; ++i) at = load_relaxed(next + at);
  *clocks = static_cast<double>(clock64() - begin) / kRounds + (at == ~0u);
}

// Reads all vectors so many times, past the first-level cache. The passes lie within one launch, since 16 MB leave L2
// in 3 us, as long as a launch takes.
__global__ void read_all(const uint4* data, int64_t count, int passes, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass)
#pragma unroll 4
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += threads) {
      uint4 words;  // volatile: every pass reads
      asm volatile("ld.global.cg.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                   : "l"(data + i));
      sum += words.x ^ words.y ^ words.z ^ words.w;
    }
  if (sum == 1) *sink = sum;  // the loads are not optimized away
}

// --- what a multiprocessor does in a clock -----------------------------------------------------------------

__global__ void block_barriers(double* clocks) {
  const int64_t begin = clock64();
  for (int i = 0; i < kRounds; ++i) __syncthreads();
  if (threadIdx.x == 0) *clocks = static_cast<double>(clock64() - begin) / kRounds;
}

__global__ void grid_barriers(double* clocks) {
  const cg::grid_group grid = cg::this_grid();
  grid.sync();
  const int64_t begin = clock64();
  for (int i = 0; i < kRounds; ++i) grid.sync();
  if (grid.thread_rank() == 0) *clocks = static_cast<double>(clock64() - begin) / kRounds;
}

struct HalfProduct {
  static constexpr int kFma = 16 * 8 * 16;
  __device__ static void multiply(float (&c)[4], uint32_t a, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a), "r"(b));
  }
};
struct Tf32Product {
  static constexpr int kFma = 16 * 8 * 8;
  __device__ static void multiply(float (&c)[4], uint32_t a, uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a), "r"(b));
  }
};
struct FloatProduct {
  static constexpr int kFma = 4 * kLanes;
  __device__ static void multiply(float (&c)[4], uint32_t a, uint32_t b) {
    for (float& value : c) value = __fmaf_rn(value, __uint_as_float(a), __uint_as_float(b));
  }
};

// Every warp runs kChains products side by side, each of which waits for the one before it in its chain. clocks: of a
// round of all chains.
template <class Product, int kChains>
__global__ void products(double* clocks, float* sink) {
  float c[kChains][4] = {};
  const uint32_t a = threadIdx.x & 1, b = threadIdx.x & 2;
  __syncthreads();
  const int64_t begin = clock64();
#pragma unroll 1
  for (int i = 0; i < kRounds; ++i)
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) Product::multiply(c[chain], a, b);
  __syncthreads();
  const int64_t end = clock64();
  float sum = 0;
  for (int chain = 0; chain < kChains; ++chain) sum += c[chain][0] + c[chain][1] + c[chain][2] + c[chain][3];
  if (sum == 1.25f) *sink = sum;
  if (threadIdx.x == 0) *clocks = static_cast<double>(end - begin) / kRounds;
}

// A gate's sigmoid, then the tanh of what it gives: the chain of one cell.
__global__ void cells(double* clocks, float* sink) {
  const auto exp2 = [](float x) {
    float y;
    asm volatile("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  };
  const auto reciprocal = [](float x) {
    float y;
    asm volatile("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  };
  float x = threadIdx.x;
  const int64_t begin = clock64();
#pragma unroll 1
  for (int i = 0; i < kRounds; ++i) {
    const float gate = reciprocal(1 + exp2(-x));
    x = __fmaf_rn(-2.f, reciprocal(1 + exp2(gate)), 1.f);
  }
  if (threadIdx.x == 0) *clocks = static_cast<double>(clock64() - begin) / kRounds;
  if (x == 2) *sink = x;
}

// clocks: of a round in which every thread reads 16 bytes, as many times as it has chains.
__global__ void shared_reads(double* clocks, uint32_t* sink) {
  constexpr int kReads = 8;
  __shared__ uint4 data[256];
  data[threadIdx.x] = make_uint4(threadIdx.x, 0, 0, 0);
  __syncthreads();
  uint32_t sum = 0;
  const int64_t begin = clock64();
#pragma unroll 1
  for (int i = 0; i < kRounds; ++i) {
#pragma unroll
    for (int read = 0; read < kReads; ++read) {
      uint4 words;
      const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(data + ((threadIdx.x + 32 * read) & 255)));
      asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                   : "r"(address));
      sum += words.x;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) *clocks = static_cast<double>(clock64() - begin) / (kRounds * kReads);
  if (sum == 1) *sink = sum;
}

__global__ void nothing() {}

// --- clusters, from sm_90 on -----------------------------------------------------------------------------

constexpr int kClusterBlocks = 8;

// clocks[0]: of a cluster's barrier; clocks[1]: of a load from another block's shared memory.
__global__ void clusters(double* clocks) {
#if __CUDA_ARCH__ >= 900
  __shared__ uint32_t next;
  const cg::cluster_group cluster = cg::this_cluster();
  next = 0;
  cluster.sync();
  int64_t begin = clock64();
  for (int i = 0; i < kRounds; ++i) cluster.sync();
  if (cluster.thread_rank() == 0) clocks[0] = static_cast<double>(clock64() - begin) / kRounds;
  const volatile uint32_t* const other = cluster.map_shared_rank(&next, kClusterBlocks - 1);
  uint32_t at = 0;
  begin = clock64();
  for (int i = 0; i < kRounds; ++i) at = other[at];
  if (cluster.thread_rank() == 0) clocks[1] = static_cast<double>(clock64() - begin) / kRounds + at;
  cluster.sync();
#endif
}

// --- the host's side ----------------------------------------------------------------------------------------

template <class... Parameters, class... Arguments>
double clocks_of(const char* what, void (*kernel)(Parameters...), int blocks, int threads, double* clocks,
                 Arguments... arguments) {
  check(cudaMemset(clocks, 0, 2 * sizeof(double)), "clearing");
  kernel<<<blocks, threads>>>(arguments...);
  check(cudaGetLastError(), what);
  check(cudaDeviceSynchronize(), what);
  return on_host(clocks, 1)[0];
}

// All blocks must run side by side: a cooperative launch, with words cleared before it.
// Exits if an answer is lost: what follows would be called measured.
double exchange_clocks(const char* what, void (*kernel)(uint32_t*, int, double*), int multiprocessors, uint32_t* words,
                       int number, double* clocks) {
  check(cudaMemset(words, 0, (multiprocessors + 1) * kLineWords * sizeof(uint32_t)), "clearing");
  check(cudaMemset(clocks, 0, sizeof(double)), "clearing");
  void* arguments[] = {&words, &number, &clocks};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), multiprocessors, 128, arguments), what);
  check(cudaDeviceSynchronize(), what);
  const double round_trip = on_host(clocks, 1)[0];
  if (round_trip == 0) {
    std::printf("FAILED %s %d: an answer never came\n", what, number);
    std::exit(1);
  }
  return round_trip / 2;
}

std::vector<uint32_t> a_cycle(int64_t count) {
  std::vector<uint32_t> order(count), next(count);
  for (int64_t i = 0; i < count; ++i) order[i] = static_cast<uint32_t>(i);
  uint64_t random = 1;
  for (int64_t i = count - 1; i > 0; --i) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    std::swap(order[i], order[(random >> 33) % (i + 1)]);
  }
  for (int64_t i = 0; i < count; ++i) next[order[i]] = order[(i + 1) % count];
  return next;
}

void launch_cluster(double* clocks) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = kClusterBlocks;
  config.blockDim = 256;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, clusters, clocks), "clusters");
  check(cudaDeviceSynchronize(), "clusters");
}

double launch_us(bool graph) {
  constexpr int kLaunches = 1000;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "making a stream");
  const auto launch_all = [&] {
    for (int i = 0; i < kLaunches; ++i) nothing<<<1, 32, 0, stream>>>();
  };
  cudaGraphExec_t executable = nullptr;
  if (graph) {
    cudaGraph_t captured;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
    launch_all();
    check(cudaStreamEndCapture(stream, &captured), "ending a capture");
    check(cudaGraphInstantiate(&executable, captured, 0), "making a graph");
  }
  std::vector<double> times;
  for (int i = 0; i < 6; ++i) {
    cudaEvent_t begin, end;
    check(cudaEventCreate(&begin), "making an event");
    check(cudaEventCreate(&end), "making an event");
    check(cudaEventRecord(begin, stream), "recording an event");
    if (graph)
      check(cudaGraphLaunch(executable, stream), "launching a graph");
    else
      launch_all();
    check(cudaGetLastError(), "launching kernels");
    check(cudaEventRecord(end, stream), "recording an event");
    check(cudaEventSynchronize(end), "waiting for an event");
    float elapsed = 0;
    check(cudaEventElapsedTime(&elapsed, begin, end), "reading an event");
    if (i > 0) times.push_back(elapsed * 1e3 / kLaunches);
  }
  return median(times);
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU\n");
    return 3;
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "asking for the device");
  const int multiprocessors = device.multiProcessorCount;
  std::printf("%s, sm_%d%d, %d multiprocessors, %.0f MB of L2\n", device.name, device.major, device.minor,
              multiprocessors, device.l2CacheSize / 1048576.0);
  double* const clocks = device_array<double>(2);
  float* const sink = device_array<float>(1);
  auto* const int_sink = reinterpret_cast<uint32_t*>(sink);

  uint64_t* const times = device_array<uint64_t>(3);
  ::clocks<<<1, 1>>>(times);
  check(cudaDeviceSynchronize(), "measuring the clock");
  const auto time = on_host(times, 3);
  const double ghz = static_cast<double>(time[0]) / static_cast<double>(time[1]);
  std::printf("clock %.3f GHz, %%globaltimer steps by %llu ns\n", ghz, static_cast<unsigned long long>(time[2]));

  uint32_t* const words = device_array<uint32_t>((multiprocessors + 1) * kLineWords);
  std::vector<double> trips;
  for (int partner = 1; partner < multiprocessors; partner += std::max(1, multiprocessors / 32))
    trips.push_back(exchange_clocks("an exchange with block", ping_pong, multiprocessors, words, partner, clocks));
  double poll_cycles = 0;
  if (!trips.empty()) {
    const auto [nearest, farthest] = std::minmax_element(trips.begin(), trips.end());
    std::printf("store to poll: nearest %.0f, median %.0f, farthest %.0f clocks\n", *nearest, median(trips), *farthest);
    for (int readers = 1; readers < multiprocessors; readers = std::min(2 * readers, multiprocessors - 1)) {
      poll_cycles = exchange_clocks("a broadcast to", broadcast, multiprocessors, words, readers, clocks);
      std::printf("store to poll, %d readers: %.0f clocks\n", readers, poll_cycles);
      if (readers == multiprocessors - 1) break;
    }
  }
  const auto cycle = a_cycle(kNearBytes / 4);
  uint32_t* const next = device_array<uint32_t>(kNearBytes / 4);
  check(cudaMemcpy(next, cycle.data(), kNearBytes, cudaMemcpyHostToDevice), "copying a chain");
  read_all<<<multiprocessors, 256>>>(reinterpret_cast<const uint4*>(next), kNearBytes / 16, 1, int_sink);
  const double l2_cycles = clocks_of("chasing through L2", chase, 1, 1, clocks, next, clocks);
  std::printf("a load from L2: %.0f clocks\n", l2_cycles);

  constexpr int kPasses = 200;  // 0.6 ms at 5.5 TB/s
  const double near_ms = milliseconds([&] {
    read_all<<<multiprocessors * 4, 512>>>(reinterpret_cast<const uint4*>(next), kNearBytes / 16, kPasses, int_sink);
  });
  uint4* const far = device_array<uint4>(kFarBytes / 16);
  const double far_ms = milliseconds([&] { read_all<<<multiprocessors * 4, 512>>>(far, kFarBytes / 16, 1, int_sink); });
  check(cudaDeviceSynchronize(), "measuring bandwidth");
  const double l2_tb_s = kPasses * kNearBytes / near_ms / 1e9, hbm_tb_s = kFarBytes / far_ms / 1e9;
  std::printf("bandwidth: L2 %.2f TB/s, memory %.2f TB/s\n", l2_tb_s, hbm_tb_s);

  const double barrier = clocks_of("barriers", block_barriers, 1, 256, clocks, clocks);
  const double half_latency = clocks_of("mma", products<HalfProduct, 1>, 1, 32, clocks, clocks, sink);
  const double tf32_latency = clocks_of("mma", products<Tf32Product, 1>, 1, 32, clocks, clocks, sink);
  const double half_round = clocks_of("mma", products<HalfProduct, 4>, 1, 256, clocks, clocks, sink);
  const double tf32_round = clocks_of("mma", products<Tf32Product, 4>, 1, 256, clocks, clocks, sink);
  const double float_round = clocks_of("fma", products<FloatProduct, 4>, 1, 512, clocks, clocks, sink);
  const double half_fma = 4 * 8 * HalfProduct::kFma / half_round;
  const double tf32_fma = 4 * 8 * Tf32Product::kFma / tf32_round;
  const double float_fma = 4 * 16 * FloatProduct::kFma / float_round;
  std::printf("barrier of 8 warps %.0f clocks; mma latency fp16 %.1f, TF32 %.1f clocks\n", barrier, half_latency,
              tf32_latency);
  std::printf("multiply-adds a clock and multiprocessor: fp16 %.0f, TF32 %.0f, float32 %.0f\n", half_fma, tf32_fma,
              float_fma);
  const double cell = clocks_of("cells", cells, 1, 32, clocks, clocks, sink);
  const double shared_bytes = 256 * 16 / clocks_of("shared memory", shared_reads, 1, 256, clocks, clocks, int_sink);
  std::printf("a cell's chain %.0f clocks; shared memory %.0f bytes a clock\n", cell, shared_bytes);

  double* argument = clocks;
  void* arguments[] = {&argument};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_barriers), multiprocessors, 256, arguments),
        "grid barriers");
  check(cudaDeviceSynchronize(), "grid barriers");
  std::printf("grid barrier: %.0f clocks\n", on_host(clocks, 1)[0]);
  if (device.major >= 9) {
    launch_cluster(clocks);
    const auto measured = on_host(clocks, 2);
    std::printf("cluster of %d: barrier %.0f clocks, a load from another block's shared memory %.0f\n", kClusterBlocks,
                measured[0], measured[1]);
  }
  const double in_stream = launch_us(false), in_graph = launch_us(true);
  std::printf("a launch: %.2f us on a stream, %.2f us in a graph\n", in_stream, in_graph);

  std::printf(
      "\ninline constexpr Machine kMeasured{.name = \"%s\",\n    .clock_ghz = %.3f,\n    .l2_tb_s = %.2f,\n"
      "    .hbm_tb_s = %.2f,\n    .half_fma = %.0f,\n    .tf32_fma = %.0f,\n    .float_fma = %.0f,\n"
      "    .poll_cycles = %.0f,\n    .l2_cycles = %.0f,\n    .barrier_cycles = %.0f,\n    .mma_cycles = %.0f,\n"
      "    .cell_cycles = %.0f,\n    .issue_slots = %.1f,\n    .shared_bytes = %.0f,\n    .launch_us = %.2f,\n"
      "    .measured = true};\n",
      device.name, ghz, l2_tb_s, hbm_tb_s, half_fma, tf32_fma, float_fma, poll_cycles, l2_cycles, barrier, half_latency,
      cell, float_fma / kLanes, shared_bytes, in_stream);
  return 0;
}
