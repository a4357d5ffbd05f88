// The boundary of csrc/cuda/launch.h for tests: a scan from plain pointers to simulated device memory.
#include <cstring>
#include <tuple>

#include "cuda/launch.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

// As scan.py fills it; pointers are null where there is nothing.
struct Call {
  const char *cell, *regime;
  int64_t T, N, I, H, R, groups, steps;
  int32_t reverse, tf32, backward;
  const void *x, *h_0, *c_0, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr, *reset_h, *reset_c;
  const int64_t *lengths, *step_start, *sample_start;
  const uint8_t* reset;
  void *y, *gates, *cells, *h_n, *c_n;
  const void *d_y, *d_cells, *d_h_n, *d_c_n;
  void *d_x, *d_h_0, *d_c_0, *d_weight_ih, *d_weight_hh, *d_bias_ih, *d_bias_hh, *d_weight_hr, *d_reset_h, *d_reset_c;
};

namespace {

template <class T, class P>
Matrix<T> matrix(P* data, int64_t columns) {
  return data ? Matrix<T>{static_cast<T*>(data), columns, 1} : Matrix<T>{};
}

template <class S>
struct Scan {
  ScanParams<S> params;
  ScanGradients<S> gradients;  // backward alone
};

template <class S>
Scan<S> scan_of(const Call& call) {
  using A = Accumulate<S>;
  const auto& [T, N, I, H, R] = std::tie(call.T, call.N, call.I, call.H, call.R);
  const auto sequence = [&]<class E>(auto* data, E*, int64_t columns) {
    if (!data) return Sequence<E>{};
    const bool rows = call.step_start || call.sample_start;
    return Sequence<E>{static_cast<E*>(data),        call.step_start, call.sample_start,
                       rows ? columns : N * columns, columns,         1};
  };
  Scan<S> scan;
  ScanParams<S>& p = scan.params;
  p.input_size = I;
  p.hidden_size = H;
  p.output_size = R;
  p.schedule.T = T;
  p.schedule.N = N;
  p.schedule.lengths = call.lengths;
  p.schedule.reverse = call.reverse;
  p.schedule.reset = matrix<const uint8_t>(call.reset, N);
  p.weights.ih = matrix<const S>(call.weight_ih, I);
  p.weights.hh = matrix<const S>(call.weight_hh, R);
  p.weights.bias_ih = {static_cast<const S*>(call.bias_ih), 1};
  p.weights.bias_hh = {static_cast<const S*>(call.bias_hh), 1};
  p.weights.hr = matrix<const S>(call.weight_hr, H);
  p.x = sequence(call.x, static_cast<const S*>(nullptr), I);
  p.h_0 = matrix<const S>(call.h_0, R);
  p.c_0 = matrix<const S>(call.c_0, H);
  p.reset_h = matrix<const S>(call.reset_h, R);
  p.reset_c = matrix<const S>(call.reset_c, H);
  p.y = sequence(call.y, static_cast<S*>(nullptr), R);
  int64_t saved = 0;
  if (!std::strcmp(call.cell, "gru") || !std::strcmp(call.cell, "lstm")) saved = 4;
  p.gates = sequence(call.gates, static_cast<S*>(nullptr), saved * H);
  p.cells = sequence(call.cells, static_cast<A*>(nullptr), H);
  p.h_n = matrix<S>(call.h_n, R);
  p.c_n = matrix<S>(call.c_n, H);

  ScanGradients<S>& d = scan.gradients;
  if (call.backward) {
    d.y = sequence(call.d_y, static_cast<const S*>(nullptr), R);
    d.cells = sequence(call.d_cells, static_cast<const A*>(nullptr), H);
    d.h_n = matrix<const S>(call.d_h_n, R);
    d.c_n = matrix<const S>(call.d_c_n, H);
    d.x = sequence(call.d_x, static_cast<S*>(nullptr), I);
    d.h_0 = matrix<S>(call.d_h_0, R);
    d.c_0 = matrix<S>(call.d_c_0, H);
    d.reset_h = matrix<S>(call.d_reset_h, R);
    d.reset_c = matrix<S>(call.d_reset_c, H);
    d.groups = call.groups;
    d.weights.ih = matrix<S>(call.d_weight_ih, I);
    d.weights.hh = matrix<S>(call.d_weight_hh, R);
    d.weights.bias_ih = {static_cast<S*>(call.d_bias_ih), 1};
    d.weights.bias_hh = {static_cast<S*>(call.d_bias_hh), 1};
    d.weights.hr = matrix<S>(call.d_weight_hr, H);
  }
  return scan;
}

template <class S>
Plan planned(const Call& call, const ScanParams<S>& params) {
  const Direction direction = call.backward ? Direction::kBackward : Direction::kForward;
  Plan plan = plan_for(call.cell, params, direction, device_limits(), call.tf32 != 0, call.regime);
  if (call.steps > 0) plan.steps = std::min(call.steps, plan.steps);  // so that short sequences are chunks too
  return plan;
}

struct Blas {
  cublasHandle_t handle = nullptr;
  Blas() {
    if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) throw LaunchError("no cuBLAS");
  }
  ~Blas() { cublasDestroy(handle); }
};

struct Workspace {
  void* data = nullptr;
  ~Workspace() { cudaFree(data); }
  void* allocate(int64_t bytes) {
    cudaFree(data);
    data = nullptr;
    if (cudaMalloc(&data, std::max<int64_t>(bytes, 1)) != cudaSuccess) throw LaunchError("no memory");
    return data;
  }
};

// What was chosen by the last scan: numbers to compare, and why not another regime.
std::string plan_text, refusals_text;
StepWork work;

template <class S>
void run(const Call& call) {
  const Scan<S> scan = scan_of<S>(call);
  const Blas blas;
  Workspace workspace;
  const Context context{nullptr, blas.handle, call.tf32 != 0};
  const auto choose = [&] { return planned(call, scan.params); };
  const auto allocate = [&](int64_t bytes) { return workspace.allocate(bytes); };
  const Plan plan = call.backward ? plan_and_launch(call.cell, context, choose, allocate, scan.params, scan.gradients)
                                  : plan_and_launch(call.cell, context, choose, allocate, scan.params);
  plan_text = std::string(name(plan.regime));
  for (const int64_t part : {int64_t{plan.unit_blocks}, int64_t{plan.column_blocks}, int64_t{plan.units},
                             int64_t{plan.columns}, plan.steps, plan.dependent_products})
    plan_text += " " + std::to_string(part);
  plan_text += " " + std::to_string(plan.step_us);
  refusals_text = refusals(plan);
  work = plan.work;
}

template <class S>
int64_t scratch(const Call& call) {
  const Scan<S> scan = scan_of<S>(call);
  const Plan plan = planned(call, scan.params);
  return call.backward ? workspace_bytes(call.cell, scan.params, scan.gradients, plan)
                       : workspace_bytes(call.cell, scan.params, plan);
}

}  // namespace

// Of one storage type, which the compiler is told. Null, or what went wrong.
extern "C" const char* scan(const Call* call) {
  static std::string error;
  try {
    run<FASTRNN_STORAGE>(*call);
    return nullptr;
  } catch (const LaunchError& found) {
    error = found.what();
    return error.c_str();
  }
}

// What a step of the latest scan does, as its plan has it.
extern "C" StepWork last_work() { return work; }

// Microseconds of such a step on the current device, by the plan's model. precision: of enum Precision.
extern "C" double modelled_us(const StepWork* step, int precision) {
  return step_us(*step, static_cast<Precision>(precision), machine_of(device_limits().compute_capability));
}

extern "C" const char* last_plan() { return plan_text.c_str(); }
extern "C" const char* last_refusals() { return refusals_text.c_str(); }

// Bytes of scratch memory of a scan that is not run: addresses may be anything but null.
extern "C" int64_t scratch_bytes(const Call* call) { return scratch<FASTRNN_STORAGE>(*call); }
