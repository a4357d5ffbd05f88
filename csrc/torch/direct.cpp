// Calls without gradients of one layer or cell on CPU that come straight from Python, past torch's dispatcher, which
// takes longer than a step of few units. fastrnn/direct.py makes them.
//
// The library is built without Python's headers. It fills in a PyMethodDef, whose layout is part of Python's stable
// ABI, and Python makes a function of it and hands over the few functions of its own that are called here. The
// interpreter's lock is held all the time: no other thread of Python changes a tensor meanwhile.
#include <algorithm>
#include <array>
#include <exception>
#include <initializer_list>
#include <string>

#include "torch/cpu_scan.h"
#include "torch/dlpack.h"
#include "torch/packed_stack.h"

namespace fastrnn::cpu {
namespace {

// Of Python; fastrnn/direct.py fills it in.
struct Python {
  const dlpack::ExchangeTable* tensors;
  void* (*capsule_pointer)(void* capsule, const char* name);
  void (*take_reference)(void* object);
  void *yes, *no;
};
Python python;

struct MethodDef {  // Python's PyMethodDef
  const char* name;
  void* (*function)(void* self, void* const* arguments, ssize_t count);
  int convention;
  const char* doc;
};
constexpr int kFastCall = 0x80;  // METH_FASTCALL

// What a function of Python's knows beside its arguments; fastrnn/direct.py has the same numbers.
enum Options : int { kLayer = 1, kStates = 2, kBias = 4, kReverse = 8, kBatchFirst = 16, kPacked = 32 };

struct Function {
  MethodDef method;
  std::string cell;  // empty where the packed weights say which
  int options;
};

constexpr char kCapsule[] = "fastrnn.direct";

// A call does not fit, and is left to an op, which has the words for it.
struct Misfit : std::exception {};
// DLPack's function has raised an exception in Python.
struct Raised {};

void require(bool fits) {
  if (!fits) throw Misfit();
}

// A tensor of Python's on CPU that has data.
class PythonTensor {
 public:
  explicit PythonTensor(void* object) {
    if (python.tensors->view(object, &view_) != 0) throw Raised();
    require(view_.device == dlpack::kCpu && view_.lanes == 1 && view_.data);
  }

  int64_t rank() const { return view_.rank; }
  // Of the i-th dimension from the last, which is 1.
  int64_t size(int64_t i) const { return view_.sizes[rank() - i]; }
  int64_t stride(int64_t i) const { return view_.strides[rank() - i]; }
  bool has(std::initializer_list<int64_t> sizes) const {
    return std::equal(sizes.begin(), sizes.end(), view_.sizes, view_.sizes + rank());
  }

  ScalarType dtype() const {
    if (view_.code == dlpack::kBFloat && view_.bits == 16) return ScalarType::BFloat16;
    if (view_.code == dlpack::kUInt && view_.bits == 8) return ScalarType::Byte;
    require(view_.code == dlpack::kFloat);
    return view_.bits == 64 ? ScalarType::Double : view_.bits == 32 ? ScalarType::Float : ScalarType::Half;
  }
  template <class S>
  S* data() const {
    return reinterpret_cast<S*>(static_cast<char*>(view_.data) + view_.byte_offset);
  }

  template <class S>
  Matrix<S> matrix() const {
    return {data<S>(), rank() > 1 ? stride(2) : 0, stride(1)};
  }
  template <class S>
  Vector<S> vector() const {
    return {data<S>(), stride(1)};
  }

 private:
  dlpack::TensorView view_;
};

// A call's tensors in Python's hands. There are as many for each function, so those that a call lacks are any.
struct Arguments {
  void *input, *h_0, *c_0, *y, *h_n, *c_n;
  void *weight_ih, *weight_hh, *bias_ih, *bias_hh;  // or packed weights, in place of the first
};
constexpr ssize_t kMostArguments = sizeof(Arguments) / sizeof(void*);

class Call {
 public:
  Call(std::string cell, int options, const Arguments& given)
      : cell_(std::move(cell)), options_(options), facts_(cell_facts(cell_)), given_(given), x_(given.input) {
    require(is_built_in(cell_));
    const int64_t batched = has(kLayer) ? 3 : 2, rank = x_.rank();
    require(rank == batched || rank == batched - 1);
    is_batched_ = rank == batched;
    const bool batch_first = is_batched_ && has(kBatchFirst);
    const int64_t sample = batch_first ? 3 : 2, step = !is_batched_ || batch_first ? 2 : 3;
    T_ = has(kLayer) ? x_.size(step) : 1;
    N_ = is_batched_ ? x_.size(sample) : 1;
    step_stride_ = has(kLayer) ? x_.stride(step) : 0;
    sample_stride_ = is_batched_ ? x_.stride(sample) : 0;
    require(std::min({T_, N_, x_.size(1)}) > 0);
  }

  ScalarType dtype() const { return x_.dtype(); }
  int64_t input_size() const { return x_.size(1); }
  bool has(Options option) const { return (options_ & option) != 0; }

  // Weights as Python has them.
  template <class S>
  void run() const {
    const PythonTensor ih(given_.weight_ih), hh(given_.weight_hh);
    require(hh.rank() == 2 && fits(ih, {facts_.input_gates * hh.size(1), x_.size(1)}) &&
            fits(hh, {facts_.recurrent_gates * hh.size(1), hh.size(1)}));
    ScanParams<S> p = params<S>(hh.size(1));
    p.weights.ih = ih.matrix<const S>();
    p.weights.hh = hh.matrix<const S>();
    if (has(kBias)) {
      const PythonTensor bias_ih(given_.bias_ih), bias_hh(given_.bias_hh);
      require(fits(bias_ih, {ih.size(2)}) && fits(bias_hh, {hh.size(2)}));
      p.weights.bias_ih = bias_ih.vector<const S>();
      p.weights.bias_hh = bias_hh.vector<const S>();
    }
    run(p);
  }

  // Weights that prepack made.
  template <class S>
  void run(const PackedHeader& header) const {
    check_packed(header, cell_, dtype(), input_size());
    require(header.entries() == 1 && header.R == header.H);
    ScanParams<S> p = params<S>(header.H);
    set_packed(header, 0, cell_, p);
    run(p);
  }

 private:
  bool fits(const PythonTensor& tensor, std::initializer_list<int64_t> sizes) const {
    return tensor.dtype() == dtype() && tensor.has(sizes);
  }
  // Checks a state, which has the input's dimensions, and of a layer 1 instead of its steps.
  template <class S>
  Matrix<S> state(void* object, int64_t columns) const {
    const PythonTensor tensor(object);
    require(has(kLayer)   ? is_batched_ ? fits(tensor, {1, N_, columns}) : fits(tensor, {1, columns})
            : is_batched_ ? fits(tensor, {N_, columns})
                          : fits(tensor, {columns}));
    return tensor.matrix<S>();
  }

  template <class S>
  ScanParams<S> params(int64_t H) const {
    ScanParams<S> p;
    p.input_size = x_.size(1);
    p.hidden_size = p.output_size = H;
    p.schedule.T = T_;
    p.schedule.N = N_;
    p.schedule.reverse = has(kReverse);
    p.x = {x_.data<const S>(), nullptr, nullptr, step_stride_, sample_stride_, x_.stride(1)};
    if (has(kStates)) p.h_0 = state<const S>(given_.h_0, H);
    p.h_n = state<S>(given_.h_n, H);
    if (facts_.cell_states > 0) {
      const int64_t columns = facts_.cell_states * H;
      if (has(kStates)) p.c_0 = state<const S>(given_.c_0, columns);
      p.c_n = state<S>(given_.c_n, columns);
    }
    if (!has(kLayer)) {  // the only step's h is the last one
      p.y = {p.h_n.data, nullptr, nullptr, 0, p.h_n.row_stride, p.h_n.col_stride};
      return p;
    }
    const PythonTensor y(given_.y);
    require(is_batched_ ? fits(y, {T_, N_, H}) : fits(y, {T_, H}));
    p.y = {y.data<S>(), nullptr, nullptr, y.stride(is_batched_ ? 3 : 2), is_batched_ ? y.stride(2) : 0, y.stride(1)};
    return p;
  }

  template <class S>
  void run(const ScanParams<S>& p) const {
    const ScanSizes sizes{T_, N_, p.input_size, p.hidden_size, p.output_size, facts_};
    check_bounds(sizes);
    kernels<S>().forward(cell_, p, present_team_for(sizes, T_ * N_));
  }

  std::string cell_;
  int options_;
  CellFacts facts_;
  Arguments given_;
  PythonTensor x_;
  bool is_batched_;
  int64_t T_, N_, step_stride_, sample_stride_;
};

void run(const Function& function, const Arguments& given) {
  if (!(function.options & kPacked)) {
    const Call call(function.cell, function.options, given);
    return dispatch_real_dtype(call.dtype(), [&]<class S>() { call.run<S>(); });
  }
  const PythonTensor packed(given.weight_ih);
  require(packed.rank() == 1 && packed.stride(1) == 1 && packed.dtype() == ScalarType::Byte);
  const PackedHeader& header = packed_header(packed.data<const char>(), packed.size(1));
  const Call call(header.cell.data(), function.options, given);
  dispatch_real_dtype(call.dtype(), [&]<class S>() { call.run<S>(header); });
}

// Returns True, False where the call does not fit, or null with an exception set.
void* call_function(void* self, void* const* arguments, ssize_t count) {
  void* answer = python.no;
  try {
    const void* const function = python.capsule_pointer(self, kCapsule);
    if (!function) return nullptr;
    Arguments given{};
    require(count <= kMostArguments);
    std::copy_n(arguments, count, reinterpret_cast<void**>(&given));
    run(*static_cast<const Function*>(function), given);
    answer = python.yes;
  } catch (const Raised&) {
    return nullptr;
  } catch (const std::exception&) {
  }
  python.take_reference(answer);
  return answer;
}

}  // namespace
}  // namespace fastrnn::cpu

#define FASTRNN_DIRECT extern "C" __attribute__((visibility("default")))

// Takes what Python hands over. Returns whether DLPack's functions are those that this library knows.
FASTRNN_DIRECT int fastrnn_direct_begin(const fastrnn::cpu::Python* python) {
  using namespace fastrnn;
  const dlpack::ExchangeTable* const tensors = python->tensors;
  if (tensors->major_version != dlpack::kMajorVersion || !tensors->view) return 0;
  cpu::python = *python;
  return 1;
}

// Returns what Python makes a function of: a PyMethodDef, for a capsule with the same address. It lives forever.
FASTRNN_DIRECT void* fastrnn_direct_function(const char* cell, int options) {
  using namespace fastrnn::cpu;
  return new Function{{"direct", call_function, kFastCall, nullptr}, cell, options};
}
