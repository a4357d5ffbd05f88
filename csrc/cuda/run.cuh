// How the kernels of a chunk are launched, and which rows they read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/plan.h"
#include "cuda/regimes/block_resident.cuh"
#include "cuda/regimes/grid_resident.cuh"
#include "cuda/regimes/stepwise.cuh"
#include "cuda/step.cuh"
#include "scan.h"

namespace fastrnn::cuda {

// Calls f.template operator()<kPrecision>() with the precision of a storage type's products.
template <class S, class F>
auto with_precision(bool tf32, F&& f) {
  if constexpr (std::is_same_v<S, Half>)
    return f.template operator()<Precision::kHalf>();
  else if constexpr (std::is_same_v<S, BFloat16>)
    return f.template operator()<Precision::kBFloat16>();
  else if constexpr (std::is_same_v<S, double>)
    return f.template operator()<Precision::kDouble>();
  else
    return tf32 ? f.template operator()<Precision::kTf32>() : f.template operator()<Precision::kFloat>();
}

template <class F>
void for_each(const Context& context, int64_t count, const F& f) {
  if (count == 0) return;
  constexpr int64_t kBlock = 256, kMostBlocks = 1 << 16;
  each<<<static_cast<unsigned>(std::min(divide_up(count, kBlock), kMostBlocks)), kBlock, 0, context.stream>>>(count, f);
  check(cudaGetLastError(), "launching a kernel");
}

template <class Kernel, class Chunk>
void run_block(const Context& context, Kernel kernel, const Chunk& chunk, const Plan& plan) {
  kernel<<<plan.blocks(), plan.threads, plan.shared_bytes, context.stream>>>(chunk);
  check(cudaGetLastError(), "launching a block-resident kernel");
}

// Whether the device cannot take a cooperative launch now, rather than that the launch is wrong.
inline bool is_refusal(cudaError_t error) {
  return error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported ||
         error == cudaErrorNotPermitted || error == cudaErrorLaunchOutOfResources;
}

template <class Chunk>
void run_grid(const Context& context, const void* kernel, Chunk chunk, const Plan& plan, uint32_t* exchange) {
  GridArguments grid{plan.unit_blocks, plan.columns, plan.steps, exchange};
  check(cudaMemsetAsync(exchange, 0xff, plan.exchange_bytes * plan.steps, context.stream), "clearing the exchange");
  void* arguments[] = {&chunk, &grid};
  const cudaError_t error =
      cudaLaunchCooperativeKernel(kernel, plan.blocks(), plan.threads, arguments, plan.shared_bytes, context.stream);
  if (!is_refusal(error)) return check(error, "launching a grid-resident kernel");
  cudaGetLastError();  // clears it, so that a later launch does not report it
  remember_refused_launch(error);
  throw LaunchRefused(cudaGetErrorString(error));
}

// Returns the grid-resident kernel for a plan's direction and units per block.
template <class Cell, class S, Precision kPrecision>
const void* grid_kernel(const Plan& plan) {
  if (plan.direction == Direction::kBackward) return reinterpret_cast<const void*>(grid_backward<Cell, S, kPrecision>);
  if constexpr (Cell::kGates == 4)
    if (plan.units == 8) return reinterpret_cast<const void*>(grid_forward<Cell, S, kPrecision, 8>);
  return reinterpret_cast<const void*>(grid_forward<Cell, S, kPrecision, 16>);
}

// The steps of one chunk, and how many rows its buffers hold.
struct Span {
  int64_t first, steps, first_time, rows;
};
template <class S>
Span span(const ScanParams<S>& p, const Plan& plan, int64_t first) {
  const Schedule& schedule = p.schedule;
  const int64_t steps = std::min(plan.steps, schedule.T - first);
  return {first, steps, schedule.reverse ? schedule.T - first - steps : first, steps * schedule.N};
}

// Returns a chunk's first row in a padded sequence.
template <class E>
E* rows_of(const Sequence<E>& sequence, const Span& span, int64_t columns) {
  return sequence.data + span.first_time * (span.rows / span.steps) * columns;
}

// Returns the chunk's rows of x, [steps * N, I]: in place, or copied to `gathered` if that is not null.
template <class S>
const S* input_rows(const Context& context, const Chunk<S>& chunk, const Span& at, S* gathered) {
  const int64_t I = chunk.scan.input_size;
  if (!gathered) return rows_of(chunk.scan.x, at, I);
  for_each(context, at.rows * I, GatherInput<S>{chunk, gathered});
  return gathered;
}

}  // namespace fastrnn::cuda
