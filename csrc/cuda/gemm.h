// Matrix products by cuBLAS: those over all steps of a chunk, and the stepwise regime's.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/launch.h"
#include "dtypes.h"
#include "scan.h"

namespace fastrnn::cuda {

inline void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw LaunchError(std::string(what) + ": " + cublasGetStatusString(status));
}

template <class T>
constexpr cudaDataType_t kCudaType = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t kCudaType<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t kCudaType<Half> = CUDA_R_16F;
template <>
inline constexpr cudaDataType_t kCudaType<BFloat16> = CUDA_R_16BF;

// A row-major matrix without gaps between its rows.
template <class T>
Matrix<const T> dense(const T* data, int64_t columns) {
  return {data, columns, 1};
}

// out [M, N] = a [M, K] b [K, N], or += if `accumulate`. a and b need dense rows or dense columns.
template <class S, class Out>
void multiply(const Context& context, int64_t M, int64_t N, int64_t K, Matrix<const S> a, Matrix<const S> b, Out* out,
              bool accumulate = false) {
  if (M == 0 || N == 0) return;
  if (K == 0) {
    if (!accumulate) check(cudaMemsetAsync(out, 0, M * N * sizeof(Out), context.stream), "clearing a product");
    return;
  }
  // cuBLAS is column-major and takes a row-major matrix for its transpose, so this computes out^T = b^T a^T. A factor
  // with dense rows is passed as it is, one with dense columns as a transposed one.
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

}  // namespace fastrnn::cuda
