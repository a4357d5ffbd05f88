// Stands in for libcublas.so.13 with cuBLAS's column-major meaning: C (m x n) = alpha op(A) op(B) + beta C, an
// operand's element (row, column) at row + column * ld. Products of half types and TF32 are exact in float, as on
// tensor cores; only the order of summation is ours. C is not read when beta is zero, so it may hold anything, NaN as
// well.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "machine.h"
#include "memory.h"

namespace {

using namespace sim;

// The numbers of library_types.h and cublas_api.h.
enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kNotSupported = 15 };
enum Type { kFloat = 0, kDouble = 1, kHalf = 2, kBfloat16 = 14 };
enum Compute {
  kCompute32F = 68,
  kCompute32FPedantic = 69,
  kCompute64F = 70,
  kCompute64FPedantic = 71,
  kCompute32FFastTf32 = 77
};
enum Operation { kN = 0, kT = 1, kC = 2 };
enum PointerMode { kHostScalars = 0, kDeviceScalars = 1 };
enum MathMode { kDefaultMath = 0, kPedanticMath = 2, kTf32Math = 3 };

struct Handle {
  void* stream = nullptr;
  int pointer_mode = kHostScalars;
  int math_mode = kDefaultMath;
};

int size_of(int type) { return type == kDouble ? 8 : type == kFloat ? 4 : 2; }

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
  if (exponent == 31) return from_bits(sign | 0x7F800000 | mantissa << 13);
  if (exponent == 0) return std::ldexp(static_cast<float>(mantissa), -24) * (sign ? -1.0f : 1.0f);
  return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return 0x7FFF;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;  // 65520 and more round to infinity
  if (magnitude < 0x38800000) {                       // below the smallest normal: the step is 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(from_bits(magnitude), 24)));
  }
  const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float round_to_tf32(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7F800000) == 0x7F800000) return value;
  return from_bits((bits + 0x1000) & 0xFFFFE000);  // to nearest, ties away from zero, as cvt.rna.tf32 does
}

template <class A>
A read_element(const std::byte* at, int type) {
  uint16_t half;
  switch (type) {
    case kHalf: std::memcpy(&half, at, 2); return half_to_float(half);
    case kBfloat16: std::memcpy(&half, at, 2); return from_bits(uint32_t{half} << 16);
    case kFloat: {
      float value;
      std::memcpy(&value, at, 4);
      return value;
    }
    default: {
      double value;
      std::memcpy(&value, at, 8);
      return static_cast<A>(value);
    }
  }
}

template <class A>
void write_element(std::byte* at, int type, A value) {
  uint16_t half;
  switch (type) {
    case kHalf:
      half = float_to_half(static_cast<float>(value));
      std::memcpy(at, &half, 2);
      break;
    case kBfloat16:
      half = float_to_bfloat16(static_cast<float>(value));
      std::memcpy(at, &half, 2);
      break;
    case kFloat: {
      const float single = static_cast<float>(value);
      std::memcpy(at, &single, 4);
      break;
    }
    default: {
      const double wide = value;
      std::memcpy(at, &wide, 8);
    }
  }
}

// C in columns of m: panels of kRows rows of A against kColumns columns of B, both packed, so that the sums stay in
// registers.
template <class A>
void multiply(const std::vector<A>& a, const std::vector<A>& b, std::vector<A>& c, int m, int n, int k) {
  constexpr int kRows = 64 / sizeof(A) * 2, kColumns = 4;
  std::vector<A> panel(size_t(kRows) * k);
  for (int i = 0; i < m; i += kRows) {
    const int rows = std::min(kRows, m - i);
    std::fill(panel.begin(), panel.end(), A{0});
    for (int p = 0; p < k; ++p) std::copy_n(&a[size_t(p) * m + i], rows, &panel[size_t(p) * kRows]);
    for (int j = 0; j < n; j += kColumns) {
      const int columns = std::min(kColumns, n - j);
      A sum[kColumns][kRows] = {};
      for (int p = 0; p < k; ++p) {
        const A* const left = &panel[size_t(p) * kRows];
        for (int q = 0; q < kColumns; ++q) {
          const A right = b[size_t(p) * n + std::min(j + q, n - 1)];
          for (int r = 0; r < kRows; ++r) sum[q][r] += left[r] * right;
        }
      }
      for (int q = 0; q < columns; ++q) std::copy_n(sum[q], rows, &c[size_t(j + q) * m + i]);
    }
  }
}

struct Matrix {
  uint64_t address;
  int type, rows, columns, ld;
};

// Every column must lie in one live block; what is read must have been written.
bool check_operand(const char* call, const char* name, const Matrix& x, bool is_read) {
  const Site site{call, 0, nullptr, 0, name};
  const uint64_t column_bytes = uint64_t(x.rows) * size_of(x.type);
  if (x.address % size_of(x.type) != 0) {
    add_finding("misaligned", std::string("operand ") + name, &site, nullptr);
    return false;
  }
  for (int j = 0; j < x.columns; ++j) {
    const uint64_t column = x.address + uint64_t(j) * x.ld * size_of(x.type);
    const uint64_t alive = alive_prefix(column, column_bytes);
    if (alive < column_bytes) {
      const bool inside = column >= kMemory && column + alive < kEnd;
      add_finding(inside && states(column + alive)[0] & kFreed ? "use after free" : "out of bounds",
                  std::string("column ") + std::to_string(j) + " of " + name + " (" + std::to_string(x.rows) + " x " +
                      std::to_string(x.columns) + ", ld " + std::to_string(x.ld) + ") is not all in device memory",
                  &site, nullptr);
      return false;
    }
    if (!is_read) continue;
    const uint64_t written = written_prefix(column, column_bytes);
    if (written < column_bytes) {
      add_finding("uninitialised read",
                  std::string("element (") + std::to_string(written / size_of(x.type)) + ", " + std::to_string(j) +
                      ") of " + name + " was never written",
                  &site, nullptr);
      return true;
    }
  }
  return true;
}

// Whether a column of one lies on a column of the other.
bool overlap(const Matrix& x, const Matrix& y) {
  const auto bytes_of = [](const Matrix& m, int64_t elements) { return elements * size_of(m.type); };
  const int64_t width = bytes_of(x, x.rows), stride = bytes_of(x, x.ld);
  for (int j = 0; j < y.columns; ++j) {
    const int64_t from = static_cast<int64_t>(y.address - x.address) + bytes_of(y, int64_t{j} * y.ld);
    const int64_t first = from < width ? 0 : (from - width) / stride + 1;  // of x's columns, that ends behind `from`
    if (first < x.columns && first * stride < from + bytes_of(y, y.rows)) return true;
  }
  return false;
}

// op(x) by columns of its `rows` (transposed: of its columns), `by_rows`: row after row instead.
template <class A>
std::vector<A> pack(const Matrix& x, int op, bool by_rows, bool tf32) {
  std::vector<A> out(size_t(x.rows) * x.columns);
  const int size = size_of(x.type);
  const bool as_stored = (op == kN) != by_rows;
  for (int j = 0; j < x.columns; ++j) {
    const std::byte* const column = bytes(x.address + uint64_t(j) * x.ld * size);
    for (int i = 0; i < x.rows; ++i) {
      A value = read_element<A>(column + size_t(i) * size, x.type);
      if (tf32) value = round_to_tf32(static_cast<float>(value));
      out[as_stored ? size_t(j) * x.rows + i : size_t(i) * x.columns + j] = value;
    }
  }
  return out;
}

template <class A>
Status gemm(const char* call, const Handle& handle, int op_a, int op_b, int m, int n, int k, const void* alpha_at,
            const Matrix& a, const Matrix& b, const void* beta_at, const Matrix& c, bool tf32) {
  A alpha, beta;
  std::memcpy(&alpha, alpha_at,
              sizeof alpha);  // device memory is host memory here; the mode only says whose it must be
  std::memcpy(&beta, beta_at, sizeof beta);
  const auto in_device = [](const void* p) { return reinterpret_cast<uint64_t>(p) - kMemory < kMemoryBytes; };
  if (in_device(alpha_at) != (handle.pointer_mode == kDeviceScalars)) {
    const Site site{call, 0, nullptr, 0, "alpha"};
    add_finding("wrong pointer mode", "alpha and beta lie on the other side", &site, nullptr);
    return kInvalidValue;
  }
  if (k > 0 && alpha != 0 && (!check_operand(call, "A", a, true) || !check_operand(call, "B", b, true)))
    return kInvalidValue;
  if (!check_operand(call, "C", c, beta != 0)) return kInvalidValue;
  if (k > 0 && (overlap(a, c) || overlap(b, c))) {
    const Site site{call, 0, nullptr, 0, "C"};
    add_finding("overlap", "C lies on A or B, which are read while it is written", &site, nullptr);
    return kInvalidValue;
  }
  std::vector<A> product(size_t(m) * n, A{0});
  if (k > 0 && alpha != 0) multiply(pack<A>(a, op_a, false, tf32), pack<A>(b, op_b, true, tf32), product, m, n, k);
  const int size = size_of(c.type);
  for (int j = 0; j < n; ++j) {
    const uint64_t column = c.address + uint64_t(j) * c.ld * size;
    for (int i = 0; i < m; ++i) {
      std::byte* const at = bytes(column + uint64_t(i) * size);
      A value = alpha * product[size_t(j) * m + i];
      if (beta != 0) value += beta * read_element<A>(at, c.type);
      write_element(at, c.type, value);
    }
    mark_written(column, uint64_t(m) * size);
  }
  return kSuccess;
}

Status gemm_strided(const char* call, Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                    const void* a, int type_a, int lda, int64_t stride_a, const void* b, int type_b, int ldb,
                    int64_t stride_b, const void* beta, void* c, int type_c, int ldc, int64_t stride_c, int batch,
                    int compute) {
  if (!handle) return kNotInitialized;
  if (m < 0 || n < 0 || k < 0 || batch < 0 || op_a < 0 || op_a > kC || op_b < 0 || op_b > kC) return kInvalidValue;
  const int rows_a = op_a == kN ? m : k, rows_b = op_b == kN ? k : n;
  if (lda < std::max(1, rows_a) || ldb < std::max(1, rows_b) || ldc < std::max(1, m)) return kInvalidValue;
  const bool wide = compute == kCompute64F || compute == kCompute64FPedantic;
  const bool known = wide || compute == kCompute32F || compute == kCompute32FPedantic ||
                     (compute == kCompute32FFastTf32 && type_a == kFloat);
  const bool half_inputs = type_a == kHalf || type_a == kBfloat16;
  const bool types = wide          ? type_a == kDouble && type_c == kDouble
                     : half_inputs ? type_c == type_a || type_c == kFloat
                                   : type_a == kFloat && type_c == kFloat;
  if (!known || type_b != type_a || !types) return kNotSupported;
  if (type_a == kBfloat16 && machine().device.major < 8) return kNotSupported;
  if (m == 0 || n == 0 || batch == 0) return kSuccess;
  if (!alpha || !beta) return kInvalidValue;
  const bool tf32 = machine().device.major >= 8 && type_a == kFloat &&
                    (compute == kCompute32FFastTf32 || (compute == kCompute32F && handle->math_mode == kTf32Math));
  for (int i = 0; i < batch; ++i) {
    const auto at = [i](const void* p, int64_t stride, int type) {
      return reinterpret_cast<uint64_t>(p) + i * stride * size_of(type);
    };
    const Matrix x{at(a, stride_a, type_a), type_a, rows_a, op_a == kN ? k : m, lda};
    const Matrix y{at(b, stride_b, type_b), type_b, rows_b, op_b == kN ? n : k, ldb};
    const Matrix z{at(c, stride_c, type_c), type_c, m, n, ldc};
    const Status status = wide ? gemm<double>(call, *handle, op_a, op_b, m, n, k, alpha, x, y, beta, z, false)
                               : gemm<float>(call, *handle, op_a, op_b, m, n, k, alpha, x, y, beta, z, tf32);
    if (status != kSuccess) return status;
  }
  LaunchReport report{};
  report.kernel = call;
  report.grid[0] = m, report.grid[1] = n, report.grid[2] = k;
  report.block[0] = batch, report.block[1] = report.block[2] = 1;
  machine().launches.push_back(std::move(report));
  return kSuccess;
}

}  // namespace

extern "C" {

Status cublasCreate_v2(Handle** handle) {
  *handle = new Handle;
  return kSuccess;
}
Status cublasDestroy_v2(Handle* handle) {
  if (!handle) return kNotInitialized;
  delete handle;
  return kSuccess;
}
Status cublasSetStream_v2(Handle* handle, void* stream) {
  if (!handle) return kNotInitialized;
  handle->stream = stream;
  return kSuccess;
}
Status cublasGetStream_v2(Handle* handle, void** stream) {
  if (!handle) return kNotInitialized;
  *stream = handle->stream;
  return kSuccess;
}
Status cublasSetWorkspace_v2(Handle* handle, void*, size_t) { return handle ? kSuccess : kNotInitialized; }
Status cublasSetPointerMode_v2(Handle* handle, int mode) {
  if (!handle) return kNotInitialized;
  handle->pointer_mode = mode;
  return kSuccess;
}
Status cublasGetPointerMode_v2(Handle* handle, int* mode) {
  if (!handle) return kNotInitialized;
  *mode = handle->pointer_mode;
  return kSuccess;
}
Status cublasSetMathMode(Handle* handle, int mode) {
  if (!handle) return kNotInitialized;
  handle->math_mode = mode & 15;
  return kSuccess;
}
Status cublasGetMathMode(Handle* handle, int* mode) {
  if (!handle) return kNotInitialized;
  *mode = handle->math_mode;
  return kSuccess;
}

Status cublasGemmEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                    int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c,
                    int ldc, int compute, int /*algorithm*/) {
  return gemm_strided("cublasGemmEx", handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                      type_c, ldc, 0, 1, compute);
}
Status cublasGemmStridedBatchedEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                                  const void* a, int type_a, int lda, long long stride_a, const void* b, int type_b,
                                  int ldb, long long stride_b, const void* beta, void* c, int type_c, int ldc,
                                  long long stride_c, int batch, int compute, int /*algorithm*/) {
  return gemm_strided("cublasGemmStridedBatchedEx", handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, stride_a, b,
                      type_b, ldb, stride_b, beta, c, type_c, ldc, stride_c, batch, compute);
}
Status cublasSgemm_v2(Handle* handle, int op_a, int op_b, int m, int n, int k, const float* alpha, const float* a,
                      int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
  return gemm_strided("cublasSgemm", handle, op_a, op_b, m, n, k, alpha, a, kFloat, lda, 0, b, kFloat, ldb, 0, beta, c,
                      kFloat, ldc, 0, 1, kCompute32F);
}
Status cublasDgemm_v2(Handle* handle, int op_a, int op_b, int m, int n, int k, const double* alpha, const double* a,
                      int lda, const double* b, int ldb, const double* beta, double* c, int ldc) {
  return gemm_strided("cublasDgemm", handle, op_a, op_b, m, n, k, alpha, a, kDouble, lda, 0, b, kDouble, ldb, 0, beta,
                      c, kDouble, ldc, 0, 1, kCompute64F);
}

const char* cublasGetStatusString(int status) {
  switch (status) {
    case kSuccess: return "the operation completed successfully";
    case kNotInitialized: return "the library was not initialized";
    case kInvalidValue: return "an unsupported value or parameter was passed to the function";
    case kNotSupported: return "the functionality requested is not supported";
    default: return "unknown status";
  }
}

}  // extern "C"
