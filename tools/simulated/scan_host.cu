// The boundary of csrc/cuda/launch.h for tests: a scan from plain pointers to simulated device memory.
#include <algorithm>
#include <string>

#include "arguments.h"
#include "cuda/launch.h"
#include "dispatch.h"
#include "scan.h"

namespace fastrnn::cuda {

// scan.py fills it; an absent tensor is a null pointer.
struct Call {
  const char *cell, *regime;
  int64_t T, N, I, H, R, groups, steps;
  int32_t reverse, tf32, backward;
  PerTensor<void*> tensors;
  const int64_t *lengths, *step_start, *sample_start;
  const uint8_t* reset;
  void *y, *gates, *cells, *h_n, *c_n;
  const void *d_y, *d_cells, *d_h_n, *d_c_n;
  PerTensor<void*> gradients;
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

template <class E>
Sequence<E> sequence(const Call& call, const void* data, int64_t columns) {
  if (!data) return {};
  const bool rows = call.step_start || call.sample_start;
  auto* elements = static_cast<E*>(const_cast<void*>(data));
  return {elements, call.step_start, call.sample_start, rows ? columns : call.N * columns, columns, 1};
}

CellFacts cell_facts(const Call& call) {
  CellFacts facts{};
  Cells::dispatch(call.cell, [&]<class Cell>() { facts = kFacts<Cell>; });
  return facts;
}

template <class S>
ScanTensors<S> views(const Call& call, const PerTensor<void*>& tensors) {
  struct {
    const Call& call;
    ScanSizes sizes;

    void operator()(const TensorInfo& info, Sequence<S>& view, const void* data) {
      view = sequence<S>(call, data, length(info.columns, sizes));
    }
    void operator()(const TensorInfo& info, Matrix<S>& view, void* data) {
      view = matrix<S>(data, length(info.columns, sizes));
    }
    void operator()(const TensorInfo&, Vector<S>& view, void* data) { view = {static_cast<S*>(data), 1}; }
  } assign{call, {call.T, call.N, call.I, call.H, call.R, cell_facts(call)}};
  ScanTensors<S> views;
  for_each_tensor(assign, ViewPerTensor<S>(views), tensors);
  return views;
}

template <class S>
Scan<S> scan_of(const Call& call) {
  using A = Accumulate<S>;
  const int64_t H = call.H, R = call.R;
  Scan<S> scan;
  ScanParams<S>& p = scan.params;
  static_cast<ScanTensors<const S>&>(p) = views<const S>(call, call.tensors);
  p.input_size = call.I;
  p.hidden_size = H;
  p.output_size = R;
  p.schedule.T = call.T;
  p.schedule.N = call.N;
  p.schedule.lengths = call.lengths;
  p.schedule.reverse = call.reverse;
  p.schedule.reset = matrix<const uint8_t>(call.reset, call.N);
  p.y = sequence<S>(call, call.y, R);
  p.gates = sequence<S>(call, call.gates, cell_facts(call).saved * H);
  p.cells = sequence<A>(call, call.cells, H);
  p.h_n = matrix<S>(call.h_n, R);
  p.c_n = matrix<S>(call.c_n, H);

  ScanGradients<S>& d = scan.gradients;
  if (call.backward) {
    static_cast<ScanTensors<S>&>(d) = views<S>(call, call.gradients);
    d.y = sequence<const S>(call, call.d_y, R);
    d.cells = sequence<const A>(call, call.d_cells, H);
    d.h_n = matrix<const S>(call.d_h_n, R);
    d.c_n = matrix<const S>(call.d_c_n, H);
    d.groups = call.groups;
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
}  // namespace fastrnn::cuda

using namespace fastrnn;
using namespace fastrnn::cuda;

// A scan of the storage type that the compiler is told. Returns null, or what went wrong.
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
