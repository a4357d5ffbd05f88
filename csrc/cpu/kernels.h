// What the kernels of every instruction set share, and the table through which one set is called.
//
// Compiled for the baseline: it is included before a file names its instruction set.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <string_view>

#include "scan.h"

namespace fastrnn::cpu {

// Uninitialised memory, aligned to a cache line and rounded up to one.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) {
    if (size == 0) return;
    const std::size_t bytes = (size * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<T*>(std::aligned_alloc(kAlignment, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Runs f(0) ... f(parts - 1), side by side where threads allow. Results never depend on `threads`.
class Team {
 public:
  using Body = std::function<void(int64_t)>;
  using Run = void (*)(int64_t parts, const Body& body);

  Team(int64_t threads, Run run) : threads_(threads), run_(run) {}
  int64_t threads() const { return threads_; }
  void run(int64_t parts, const Body& body) const {
    if (parts == 1) return body(0);
    run_(parts, body);
  }

 private:
  int64_t threads_;
  Run run_;
};

// The kernels of one instruction set for one storage type.
template <class S>
struct Kernels {
  void (*forward)(std::string_view cell, const ScanParams<S>&, const Team&);
  void (*backward)(std::string_view cell, const ScanParams<S>&, const ScanGradients<S>&, const Team&);
};

struct InstructionSet {
  std::string_view name;  // as in FASTRNN_CPU_ISA
  bool (*runs_here)();
  Kernels<float> float32;
  Kernels<double> float64;
  Kernels<BFloat16> bfloat16;
  Kernels<Half> float16;

  template <class S>
  const Kernels<S>& kernels() const {
    if constexpr (std::is_same_v<S, float>)
      return float32;
    else if constexpr (std::is_same_v<S, double>)
      return float64;
    else if constexpr (std::is_same_v<S, BFloat16>)
      return bfloat16;
    else
      return float16;
  }
};

#if defined(__x86_64__)
extern const InstructionSet kAvx512;
extern const InstructionSet kAvx2;
#elif defined(__aarch64__)
extern const InstructionSet kNeon;
#endif
extern const InstructionSet kPlain;

}  // namespace fastrnn::cpu
