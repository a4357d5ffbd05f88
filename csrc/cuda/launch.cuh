// launch: what a scan is on a GPU, from the input's product to the weights' gradients, chunk by chunk.
//
// Only the recurrence differs by regime. Everything before and after it is a product over all steps of a chunk, which
// cuBLAS does, or one kernel over all their elements. Included once a storage type, by the files that compile it.
#pragma once

#include <climits>

#include "cuda/block_resident.cuh"
#include "cuda/grid_resident.cuh"
#include "cuda/launch.h"
#include "cuda/stepwise.cuh"
#include "dispatch.h"

namespace fastrnn::cuda {

inline void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw LaunchError(std::string(what) + ": " + cublasGetStatusString(status));
}

// Precision of a storage type's products. f.template operator()<kPrecision>()
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

// --- scratch memory ----------------------------------------------------------------------------------

// Hands out pieces of a workspace; of none (null) it only counts.
class Arena {
 public:
  explicit Arena(void* workspace) : base_(static_cast<char*>(workspace)) {}

  template <class T>
  T* take(int64_t count, bool wanted = true) {
    if (!wanted || count == 0) return nullptr;
    char* piece = base_ + bytes_;
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    return base_ ? reinterpret_cast<T*>(piece) : nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* base_;
  int64_t bytes_ = 0;
};

// Whether a step's rows lie where the host cannot tell: of a packed or jagged sequence.
template <class S>
bool scattered(const ScanParams<S>& p) {
  return p.x.step_start || p.x.sample_start;
}
// Rows that a chunk's buffers hold, whatever the layout, so that scratch memory does not grow with the sequence.
template <class S>
int64_t chunk_rows(const ScanParams<S>& p, const Plan& plan) {
  return std::min(plan.steps, p.schedule.T) * p.schedule.N;
}

template <class S>
struct ForwardBuffers {
  using A = Accumulate<S>;
  A *h, *c, *gx, *gh, *product;
  S *x, *entering, *output;
  uint32_t* exchange;

  template <class Cell>
  static ForwardBuffers take(Arena& arena, const ScanParams<S>& p, const Plan& plan) {
    const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
    const bool stepwise = plan.regime == Regime::kStepwise, projected = bool(p.weights.hr);
    ForwardBuffers found;
    found.h = arena.take<A>(N * R);
    found.c = arena.take<A>(N * H, Cell::kHasCellState);
    found.x = arena.take<S>(chunk_rows(p, plan) * p.input_size, scattered(p));
    found.gx = arena.take<A>(chunk_rows(p, plan) * gates);
    found.gh = arena.take<A>(N * gates, stepwise);
    found.entering = arena.take<S>(N * R, stepwise);
    found.output = arena.take<S>(N * H, projected);
    found.product = arena.take<A>(N * R, projected);
    found.exchange = arena.take<uint32_t>(plan.exchange_bytes / 4 * plan.steps);
    return found;
  }
};

template <class S>
struct BackwardBuffers {
  using A = Accumulate<S>;
  A *h, *c, *d_reset_h, *d_reset_c, *gx, *gh, *d_output, *through_gh;
  S *h_previous, *x, *d_x, *gates, *d_gx, *d_gh, *d_gh_now, *d_projected, *d_now, *outputs;
  A *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr;  // sums over chunks, group after group
  uint32_t* exchange;

  template <class Cell>
  static BackwardBuffers take(Arena& arena, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan) {
    const int64_t N = p.schedule.N, I = p.input_size, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
    const int64_t rows = chunk_rows(p, plan);
    const bool stepwise = plan.regime == Regime::kStepwise, projected = bool(p.weights.hr);
    const bool recompute = Cell::kSaved > 0 && !p.gates;
    BackwardBuffers found;
    found.h = arena.take<A>(N * R);
    found.c = arena.take<A>(N * H, Cell::kHasCellState);
    found.d_reset_h = arena.take<A>(N * R, bool(d.reset_h));
    found.d_reset_c = arena.take<A>(N * H, bool(d.reset_c));
    found.weight_ih = arena.take<A>(d.groups * gates * I, bool(d.weights.ih));
    found.weight_hh = arena.take<A>(d.groups * gates * R, bool(d.weights.hh));
    found.bias_ih = arena.take<A>(d.groups * gates, bool(d.weights.bias_ih));
    found.bias_hh = arena.take<A>(d.groups * gates, bool(d.weights.bias_hh));
    found.weight_hr = arena.take<A>(d.groups * R * H, bool(d.weights.hr));
    found.gx = arena.take<A>(rows * gates, recompute);
    found.gh = arena.take<A>(rows * gates, recompute);
    found.gates = arena.take<S>(rows * Cell::kSaved * H, recompute);
    found.h_previous = arena.take<S>(rows * R, recompute || Cell::kReadsPreviousH || d.weights.hh);
    found.x =
        arena.take<S>(rows * I, (d.weights.ih && p.schedule.lengths) || ((d.weights.ih || recompute) && scattered(p)));
    found.d_x = arena.take<S>(rows * I, d.x && scattered(p));
    found.d_gx = arena.take<S>(rows * gates);
    found.d_gh = Cell::kSplitGateGradients ? arena.take<S>(rows * gates) : found.d_gx;
    found.d_gh_now = arena.take<S>(N * gates, stepwise);
    found.d_projected = arena.take<S>(rows * R, projected);
    found.d_now = arena.take<S>(N * R, projected);
    found.d_output = arena.take<A>(N * H, projected);
    found.through_gh = arena.take<A>(N * R, stepwise);
    found.outputs = arena.take<S>(rows * H, bool(d.weights.hr));
    found.exchange = arena.take<uint32_t>(plan.exchange_bytes / 4 * plan.steps);
    return found;
  }
};

// --- products ----------------------------------------------------------------------------------------

template <class T>
constexpr cudaDataType_t kCudaType = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t kCudaType<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t kCudaType<Half> = CUDA_R_16F;
template <>
inline constexpr cudaDataType_t kCudaType<BFloat16> = CUDA_R_16BF;

// A matrix whose rows follow each other.
template <class T>
Matrix<const T> dense(const T* data, int64_t columns) {
  return {data, columns, 1};
}

// out [M, N] = a [M, K] b [K, N], added to what is there or not. Rows or columns of a and b are dense.
template <class S, class Out>
void multiply(const Context& context, int64_t M, int64_t N, int64_t K, Matrix<const S> a, Matrix<const S> b, Out* out,
              bool accumulate = false) {
  if (M == 0 || N == 0) return;
  if (K == 0) {
    if (!accumulate) check(cudaMemsetAsync(out, 0, M * N * sizeof(Out), context.stream), "clearing a product");
    return;
  }
  // cuBLAS counts columns first, where a row-major matrix is its transpose: out^T = b^T a^T. An operand of `rows`
  // consecutive numbers a column is taken as it is, any other transposed.
  struct Operand {
    cublasOperation_t operation;
    int64_t ld;
  };
  const auto operand = [](const Matrix<const S>& m, int64_t rows, int64_t columns) -> Operand {
    if (m.col_stride == 1 || columns == 1) return {CUBLAS_OP_N, std::max(m.row_stride, columns)};
    if (m.row_stride != 1 && rows != 1)
      throw LaunchError("a product's factor has neither dense rows nor dense columns");
    return {CUBLAS_OP_T, std::max(m.col_stride, rows)};
  };
  const Operand left = operand(b, K, N), right = operand(a, M, K);
  if (std::max({M, N, K, left.ld, right.ld}) > INT_MAX)
    throw LaunchError("a product has a size or a stride of more than 2^31 - 1");
  const Accumulate<S> one = 1, beta = accumulate ? 1 : 0;
  const cublasComputeType_t compute = std::is_same_v<S, double>   ? CUBLAS_COMPUTE_64F
                                      : !std::is_same_v<S, float> ? CUBLAS_COMPUTE_32F
                                      : context.tf32              ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                  : CUBLAS_COMPUTE_32F_PEDANTIC;
  check(cublasGemmEx(context.blas, left.operation, right.operation, static_cast<int>(N), static_cast<int>(M),
                     static_cast<int>(K), &one, b.data, kCudaType<S>, static_cast<int>(left.ld), a.data, kCudaType<S>,
                     static_cast<int>(right.ld), &beta, out, kCudaType<Out>, static_cast<int>(N), compute,
                     CUBLAS_GEMM_DEFAULT),
        "a product");
}

// --- kernels -----------------------------------------------------------------------------------------

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

// Whether an error says that this device takes no cooperative launch now, and not that the launch is wrong.
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

// The grid-resident kernel of a plan.
template <class Cell, class S, Precision kPrecision>
const void* grid_kernel(const Plan& plan) {
  if (plan.direction == Direction::kBackward) return reinterpret_cast<const void*>(grid_backward<Cell, S, kPrecision>);
  if constexpr (Cell::kGates == 4)
    if (plan.units == 8) return reinterpret_cast<const void*>(grid_forward<Cell, S, kPrecision, 8>);
  return reinterpret_cast<const void*>(grid_forward<Cell, S, kPrecision, 16>);
}

// --- forward -----------------------------------------------------------------------------------------

// A part of a walk that is launched at once, and how many rows its buffers hold.
struct Span {
  int64_t first, steps, first_time, rows;
};
template <class S>
Span span(const ScanParams<S>& p, const Plan& plan, int64_t first) {
  const Schedule& schedule = p.schedule;
  const int64_t steps = std::min(plan.steps, schedule.T - first);
  return {first, steps, schedule.reverse ? schedule.T - first - steps : first, steps * schedule.N};
}

// The rows of a padded sequence that a chunk's are.
template <class E>
E* rows_of(const Sequence<E>& sequence, const Span& span, int64_t columns) {
  return sequence.data + span.first_time * (span.rows / span.steps) * columns;
}

// The rows of x for a chunk's products: as they lie in memory, or gathered where there is a buffer for them.
template <class S>
const S* input_rows(const Context& context, const Chunk<S>& chunk, const Span& at, S* gathered) {
  const int64_t I = chunk.scan.input_size;
  if (!gathered) return rows_of(chunk.scan.x, at, I);
  for_each(context, at.rows * I, GatherInput<S>{chunk, gathered});
  return gathered;
}

template <class Cell, class S>
void step_forward(const Context& context, const ForwardChunk<S>& chunk, const ForwardBuffers<S>& buffers) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size;
  const bool projected = bool(p.weights.hr);
  for (int64_t walked = chunk.first; walked < chunk.first + chunk.steps; ++walked) {
    multiply<S>(context, N, Cell::kGates * H, R, dense<S>(buffers.entering, R), p.weights.hh.transposed(), buffers.gh);
    for_each(context, N * H,
             ForwardCell<Cell, S>{chunk, walked, buffers.gh, projected ? buffers.output : buffers.entering, projected});
    if (!projected) continue;
    multiply<S>(context, N, R, H, dense<S>(buffers.output, H), p.weights.hr.transposed(), buffers.product);
    for_each(context, N * R, Project<S>{chunk, walked, buffers.product, buffers.entering});
  }
}

template <class Cell, class S>
void forward(const ScanParams<S>& p, const Plan& plan, void* workspace, const Context& context) {
  const int64_t N = p.schedule.N, T = p.schedule.T, H = p.hidden_size, R = p.output_size, I = p.input_size;
  Arena arena(workspace);
  const auto buffers = ForwardBuffers<S>::template take<Cell>(arena, p, plan);
  for_each(context, N * R, BeginForward<S>{p, p.h_0, p.reset_h, R, buffers.h});
  if (Cell::kHasCellState) for_each(context, N * H, BeginForward<S>{p, p.c_0, p.reset_c, H, buffers.c});
  if (plan.regime == Regime::kStepwise) for_each(context, N * R, Write<S>{buffers.h, R, {buffers.entering, R, 1}});
  for (int64_t first = 0; first < T && N > 0; first += plan.steps) {
    const Span at = span(p, plan, first);
    const ForwardChunk<S> chunk{{p, at.first, at.steps, at.first_time, buffers.h, buffers.c}, buffers.gx};
    const S* x = input_rows<S>(context, chunk, at, buffers.x);
    multiply<S>(context, at.rows, Cell::kGates * H, I, dense(x, I), p.weights.ih.transposed(), buffers.gx);
    if (plan.regime == Regime::kStepwise) {
      step_forward<Cell>(context, chunk, buffers);
    } else if constexpr (!std::is_same_v<S, double>) {
      with_precision<S>(context.tf32, [&]<Precision kPrecision>() {
        if (plan.regime == Regime::kBlockResident)
          run_block(context, block_forward<Cell, S, kPrecision>, chunk, plan);
        else
          run_grid(context, grid_kernel<Cell, S, kPrecision>(plan), chunk, plan, buffers.exchange);
      });
    }
  }
  for_each(context, N * R, Write<S>{buffers.h, R, p.h_n});
  if (Cell::kHasCellState) for_each(context, N * H, Write<S>{buffers.c, H, p.c_n});
}

// --- backward ----------------------------------------------------------------------------------------

template <class Cell, class S>
void step_backward(const Context& context, BackwardChunk<S> chunk, const BackwardBuffers<S>& buffers) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t N = p.schedule.N, H = p.hidden_size, R = p.output_size;
  const bool projected = bool(p.weights.hr);
  chunk.d_output = buffers.d_output;
  const Accumulate<S>* through_gh = nullptr;
  for (int64_t walked = chunk.first + chunk.steps - 1; walked >= chunk.first; --walked) {
    if (projected) {
      for_each(context, N * R, ProjectBackward<S>{chunk, walked, through_gh, buffers.d_projected, buffers.d_now});
      multiply<S>(context, N, H, R, dense<S>(buffers.d_now, R), p.weights.hr, buffers.d_output);
    }
    for_each(context, N * H, BackwardCell<Cell, S>{chunk, walked, through_gh, buffers.d_gh_now});
    multiply<S>(context, N, R, Cell::kGates * H, dense<S>(buffers.d_gh_now, Cell::kGates * H), p.weights.hh,
                buffers.through_gh);
    through_gh = buffers.through_gh;
  }
  for_each(context, N * R, AddProduct<S>{chunk, through_gh});
}

// Gradients of weights, from those of a chunk's gates.
template <class Cell, class S>
void add_weight_gradients(const Context& context, const BackwardChunk<S>& chunk, const ScanGradients<S>& d,
                          const BackwardBuffers<S>& buffers, const Span& at, const S* x) {
  const ScanParams<S>& p = chunk.scan;
  const int64_t I = p.input_size, H = p.hidden_size, R = p.output_size, gates = Cell::kGates * H;
  const int64_t groups = d.groups, rows = at.rows / groups;
  // Rows of a group lie `groups` apart, whatever the step.
  const auto add = [&](const S* left, int64_t M, const S* right, int64_t N, Accumulate<S>* sums) {
    for (int64_t group = 0; group < groups; ++group)
      multiply<S>(context, M, N, rows, dense(left, M).every(groups, group).transposed(),
                  dense(right, N).every(groups, group), sums + group * M * N, true);
  };
  const auto add_rows = [&](const S* from, Accumulate<S>* sums) {
    const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(divide_up(gates, kLanes)));
    column_sums<S><<<grid, dim3(kLanes, kSumRows), 0, context.stream>>>(from, at.rows, gates, groups, sums);
    check(cudaGetLastError(), "summing a bias's gradient");
  };
  if (d.weights.ih) add(buffers.d_gx, gates, x, I, buffers.weight_ih);
  if (d.weights.hh) add(buffers.d_gh, gates, buffers.h_previous, R, buffers.weight_hh);
  if (d.weights.bias_ih) add_rows(buffers.d_gx, buffers.bias_ih);
  if (d.weights.bias_hh) add_rows(buffers.d_gh, buffers.bias_hh);
  if constexpr (Cell::kHasCellState)
    if (d.weights.hr) {
      for_each(context, at.rows * H, Outputs<Cell, S>{chunk, buffers.outputs});
      add(buffers.d_projected, R, buffers.outputs, H, buffers.weight_hr);
    }
}

template <class Cell, class S>
void backward(const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan, void* workspace,
              const Context& context) {
  using A = Accumulate<S>;
  const int64_t N = p.schedule.N, T = p.schedule.T, H = p.hidden_size, R = p.output_size, I = p.input_size;
  const int64_t gates = Cell::kGates * H;
  Arena arena(workspace);
  const auto buffers = BackwardBuffers<S>::template take<Cell>(arena, p, d, plan);
  const auto clear = [&](auto* piece, int64_t count) {
    if (piece) check(cudaMemsetAsync(piece, 0, count * sizeof *piece, context.stream), "clearing a sum");
  };
  clear(buffers.d_reset_h, N * R);
  clear(buffers.d_reset_c, N * H);
  clear(buffers.weight_ih, d.groups * gates * I);
  clear(buffers.weight_hh, d.groups * gates * R);
  clear(buffers.bias_ih, d.groups * gates);
  clear(buffers.bias_hh, d.groups * gates);
  clear(buffers.weight_hr, d.groups * R * H);
  for_each(context, N * R, Read<S>{d.h_n, R, buffers.h});
  if (Cell::kHasCellState) for_each(context, N * H, Read<S>{d.c_n, H, buffers.c});
  const int64_t chunks = N > 0 ? divide_up(T, plan.steps) : 0;
  for (int64_t i = chunks - 1; i >= 0; --i) {
    const Span at = span(p, plan, i * plan.steps);
    BackwardChunk<S> chunk{{p, at.first, at.steps, at.first_time, buffers.h, buffers.c}, d};
    chunk.h_previous = buffers.h_previous;
    chunk.gates = buffers.gates;
    chunk.d_gx = buffers.d_gx;
    chunk.d_gh = buffers.d_gh;
    chunk.d_reset_h = buffers.d_reset_h;
    chunk.d_reset_c = buffers.d_reset_c;
    const S* x = input_rows<S>(context, chunk, at, buffers.x);
    if (buffers.h_previous) for_each(context, at.rows * R, PreviousStates<S>{chunk, buffers.h_previous});
    if (buffers.gates) {
      multiply<S>(context, at.rows, gates, I, dense(x, I), p.weights.ih.transposed(), buffers.gx);
      multiply<S>(context, at.rows, gates, R, dense<S>(buffers.h_previous, R), p.weights.hh.transposed(), buffers.gh);
      for_each(context, at.rows * H, RecomputeGates<Cell, S>{chunk, buffers.gx, buffers.gh, buffers.gates});
    }
    if (plan.regime == Regime::kStepwise) {
      step_backward<Cell>(context, chunk, buffers);
    } else if constexpr (!std::is_same_v<S, double>) {
      with_precision<S>(context.tf32, [&]<Precision kPrecision>() {
        if (plan.regime == Regime::kBlockResident)
          run_block(context, block_backward<Cell, S, kPrecision>, chunk, plan);
        else
          run_grid(context, grid_kernel<Cell, S, kPrecision>(plan), chunk, plan, buffers.exchange);
      });
    }
    if (d.x)
      multiply<S>(context, at.rows, I, gates, dense<S>(buffers.d_gx, gates), p.weights.ih,
                  scattered(p) ? buffers.d_x : rows_of(d.x, at, I));
    if (d.x && scattered(p)) for_each(context, at.rows * I, ScatterInputGradient<S>{chunk, buffers.d_x});
    if (d.any_weight()) add_weight_gradients<Cell>(context, chunk, d, buffers, at, x);
  }
  for_each(context, N * R, FinishBackward<S>{p, buffers.h, buffers.d_reset_h, R, d.h_0});
  if (Cell::kHasCellState) for_each(context, N * H, FinishBackward<S>{p, buffers.c, buffers.d_reset_c, H, d.c_0});
  const auto write = [&](const A* from, int64_t rows, int64_t columns, Matrix<S> to) {
    if (to) for_each(context, rows * columns, Write<S>{from, columns, to});
  };
  const auto vector = [](const Vector<S>& v) { return Matrix<S>{v.data, v.stride, 1}; };
  write(buffers.d_reset_h, N, R, d.reset_h);
  write(buffers.d_reset_c, N, H, d.reset_c);
  write(buffers.weight_ih, d.groups * gates, I, d.weights.ih);
  write(buffers.weight_hh, d.groups * gates, R, d.weights.hh);
  write(buffers.bias_ih, d.groups * gates, 1, vector(d.weights.bias_ih));
  write(buffers.bias_hh, d.groups * gates, 1, vector(d.weights.bias_hh));
  write(buffers.weight_hr, d.groups * R, H, d.weights.hr);
}

// --- the boundary ------------------------------------------------------------------------------------

template <class F>
void with_cell(std::string_view cell, F&& f) {
  if (!Cells::dispatch(cell, f)) throw LaunchError("unknown cell '" + std::string(cell) + "'");
}

template <class S>
Plan plan_for(std::string_view cell, const ScanParams<S>& p, Direction direction, const DeviceLimits& device, bool tf32,
              std::string_view forced) {
  Plan found;
  with_cell(cell, [&]<class Cell>() {
    with_precision<S>(tf32, [&]<Precision kPrecision>() {
      const Sizes sizes{.gates = Cell::kGates,
                        .T = p.schedule.T,
                        .N = p.schedule.N,
                        .H = p.hidden_size,
                        .projected = bool(p.weights.hr),
                        .saved = Cell::kSaved,
                        .has_cell_state = Cell::kHasCellState};
      DeviceLimits limits = device;
      // Below sm_80 the resident kernels compile to empty bodies, and a newer GPU runs such code too.
      const int version = code_version(reinterpret_cast<const void*>(column_sums<S>));
      if (version < 80) limits.compute_capability = version;
      found = plan(sizes, kPrecision, direction, limits, forced);
      if constexpr (kPrecision != Precision::kDouble)
        if (found.step_us >= 0 && found.regime == Regime::kGridResident) {
          // A device that is shared may hold fewer blocks than it has multiprocessors.
          const int64_t blocks =
              blocks_at_once(grid_kernel<Cell, S, kPrecision>(found), found.threads, found.shared_bytes);
          if (blocks < found.blocks()) {
            const Refusal refusal{Reason::kTooFewAtOnce, found.blocks(), blocks};
            limits.cooperative = false;
            found = plan(sizes, kPrecision, direction, limits, forced);
            found.refusal(Regime::kGridResident) = refusal;
          }
        }
      if (found.step_us < 0) {
        const std::string reasons = refusals(found);
        throw LaunchError(reasons.empty() ? "no such regime" : reasons);
      }
    });
  });
  return found;
}

template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& p, const Plan& plan) {
  Arena arena(nullptr);
  with_cell(cell, [&]<class Cell>() { ForwardBuffers<S>::template take<Cell>(arena, p, plan); });
  return arena.bytes();
}
template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan) {
  Arena arena(nullptr);
  with_cell(cell, [&]<class Cell>() { BackwardBuffers<S>::template take<Cell>(arena, p, d, plan); });
  return arena.bytes();
}

template <class S>
void launch(std::string_view cell, const ScanParams<S>& p, const Plan& plan, void* workspace, const Context& context) {
  with_cell(cell, [&]<class Cell>() { forward<Cell, S>(p, plan, workspace, context); });
}
template <class S>
void launch(std::string_view cell, const ScanParams<S>& p, const ScanGradients<S>& d, const Plan& plan, void* workspace,
            const Context& context) {
  with_cell(cell, [&]<class Cell>() { backward<Cell, S>(p, d, plan, workspace, context); });
}

// Everything of one storage type.
#define FASTRNN_INSTANTIATE_LAUNCH(S)                                                                                \
  template Plan plan_for<S>(std::string_view, const ScanParams<S>&, Direction, const DeviceLimits&, bool,            \
                            std::string_view);                                                                       \
  template int64_t workspace_bytes<S>(std::string_view, const ScanParams<S>&, const Plan&);                          \
  template int64_t workspace_bytes<S>(std::string_view, const ScanParams<S>&, const ScanGradients<S>&, const Plan&); \
  template void launch<S>(std::string_view, const ScanParams<S>&, const Plan&, void*, const Context&);               \
  template void launch<S>(std::string_view, const ScanParams<S>&, const ScanGradients<S>&, const Plan&, void*,       \
                          const Context&);

}  // namespace fastrnn::cuda
