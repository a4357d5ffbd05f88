// launch: a scan on a GPU, without torch. Everything below is what the simulator runs.
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

// What CUDA or cuBLAS refused: the caller's error type is the caller's affair.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A cooperative launch that CUDA refused although the device should hold it, as under MPS, MIG or a debugger. The next
// plan needs none, and everything that was launched before may be launched again.
struct LaunchRefused : LaunchError {
  using LaunchError::LaunchError;
};

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the next kernel's launch, of whoever, is not to blame
  throw LaunchError(std::string(what) + ": " + cudaGetErrorString(error));
}

struct Context {
  cudaStream_t stream = nullptr;
  cublasHandle_t blas = nullptr;  // on that stream
  bool tf32 = false;              // float32 products may round their factors to TF32
};

// What both passes of a scan are cut into. `forced`: a regime's name, or empty for the fastest.
// Throws LaunchError where a forced regime cannot run it, with the reason.
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

// Launches what choose() plans, in scratch memory of allocate(bytes), and returns the plan that ran. `gradients` in the
// backward pass alone.
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

// What the current device can hold. CUDA is asked once a device and kernel; any thread may call these.
DeviceLimits device_limits();
int code_version(const void* kernel);  // 10 * major + minor of the architecture it is compiled for
void remember_refused_launch(cudaError_t error);
int blocks_at_once(const void* kernel, int threads, int64_t shared_bytes);  // on all multiprocessors together

}  // namespace fastrnn::cuda
