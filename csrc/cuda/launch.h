// launch: a scan on a GPU, without torch. The simulator runs everything below this boundary.
//
// All pointers of the params are to device memory, also those of the Schedule. x, y, gates and cells (and their
// gradients) have dense rows: col_stride 1, and rows that follow each other without a gap.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/plan.h"
#include "scan.h"

namespace fastrnn::cuda {

// An error of CUDA or cuBLAS, or a scan that cannot run as forced. Callers translate it to an error type of their own.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// CUDA refused a cooperative launch although the device should hold it, as under MPS, MIG or a debugger. The next plan
// needs no cooperative launch, and everything that was launched before may be launched again.
struct LaunchRefused : LaunchError {
  using LaunchError::LaunchError;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that a later launch does not report it
  throw LaunchError(std::string(what) + ": " + cudaGetErrorString(error));
}

struct Context {
  cudaStream_t stream = nullptr;
  cublasHandle_t blas = nullptr;  // on that stream
  bool tf32 = false;              // float32 products may round their factors to TF32
};

// Plans one pass of a scan. `forced` is a regime's name, or empty for the fastest one.
// Throws LaunchError with the reason if the forced regime cannot run the scan.
template <class S>
Plan plan_for(std::string_view cell, const ScanParams<S>& params, Direction direction, const DeviceLimits& limits,
              bool tf32, std::string_view forced = {});

// Scratch memory the launch needs, 256-byte aligned.
template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& params, const Plan& plan);
template <class S>
int64_t workspace_bytes(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients,
                        const Plan& plan);

template <class S>
void launch(std::string_view cell, const ScanParams<S>& params, const Plan& plan, void* workspace,
            const Context& context);
template <class S>
void launch(std::string_view cell, const ScanParams<S>& params, const ScanGradients<S>& gradients, const Plan& plan,
            void* workspace, const Context& context);

// Launches the plan of choose() in scratch memory from allocate(bytes), and returns the plan that ran. The backward
// pass alone has `gradients`.
template <class S, class Choose, class Allocate, class... Gradients>
Plan plan_and_launch(std::string_view cell, const Context& context, Choose&& choose, Allocate&& allocate,
                     const ScanParams<S>& params, const Gradients&... gradients) {
  for (;;) {
    const Plan plan = choose();
    void* const workspace = allocate(workspace_bytes(cell, params, gradients..., plan));
    try {
      launch(cell, params, gradients..., plan, workspace, context);
      return plan;
    } catch (const LaunchRefused&) {  // remembered: the next plan has no cooperative launch
    }
  }
}

// Queries of the current device. Answers are cached for each device and kernel; any thread may call these.
DeviceLimits device_limits();
int code_version(const void* kernel);  // 10 * major + minor of the architecture it is compiled for
void remember_refused_launch(cudaError_t error);
int blocks_at_once(const void* kernel, int threads, int64_t shared_bytes);  // on all multiprocessors together

}  // namespace fastrnn::cuda
