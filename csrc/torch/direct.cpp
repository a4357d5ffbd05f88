// Short calls of one layer and direction, or of a cell, on CPU that come straight from Python, past torch's dispatcher,
// which takes longer than a step of few units. fastrnn/direct.py makes them.
//
// The library is built without Python's headers. It fills in a PyMethodDef, whose layout is part of Python's stable
// ABI, and Python makes a function of it and hands over the few functions of its own that are called here.
#include <algorithm>
#include <array>
#include <exception>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

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
  void* (*release_lock)();  // the interpreter's
  void (*take_lock)(void* state);
  void *yes, *no, *none;
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
enum Options : int { kLayer = 1, kBatchFirst = 2, kReverse = 4, kPacked = 8, kSave = 16, kRecompute = 32, kAdd = 64 };

struct Function {
  MethodDef method;
  std::string cell;
  CellFacts facts;
  int options;
  // A bit for each row of the cell's table of tensors: those that are there, and in backward those whose gradient is
  // computed.
  unsigned present, needs;

  bool is(Options option) const { return (options & option) != 0; }
};

constexpr char kCapsule[] = "fastrnn.direct";

// A call does not fit, and is left to an op, which has the words for it.
struct Misfit : std::exception {};
// DLPack's function has raised an exception in Python.
struct Raised {};

void require(bool fits) {
  if (!fits) throw Misfit();
}

// Other threads of Python may run as long as this lives.
class Unlocked {
 public:
  explicit Unlocked(bool wanted) : state_(wanted ? python.release_lock() : nullptr) {}
  Unlocked(const Unlocked&) = delete;
  ~Unlocked() {
    if (state_) python.take_lock(state_);
  }

 private:
  void* const state_;
};

template <class S>
constexpr ScalarType kDtype = ScalarType::Undefined;
template <>
constexpr ScalarType kDtype<uint8_t> = ScalarType::Byte;
template <>
constexpr ScalarType kDtype<float> = ScalarType::Float;
template <>
constexpr ScalarType kDtype<double> = ScalarType::Double;
template <>
constexpr ScalarType kDtype<BFloat16> = ScalarType::BFloat16;
template <>
constexpr ScalarType kDtype<Half> = ScalarType::Half;

// This views a tensor of Python's on CPU. One that is not empty must have data.
class PythonTensor {
 public:
  explicit PythonTensor(void* object) {
    dlpack::TensorView view;
    if (python.tensors->view(object, &view) != 0) throw Raised();
    require(view.device == dlpack::kCpu && view.lanes == 1 && view.rank <= kMostRank);
    data_ = static_cast<char*>(view.data) + view.byte_offset;
    code_ = view.code;
    bits_ = view.bits;
    rank_ = view.rank;
    std::copy_n(view.sizes, rank_, sizes_.begin());
    std::copy_n(view.strides, rank_, strides_.begin());
    require(view.data || bytes() == 0);
  }

  size_t rank() const { return rank_; }
  int64_t size(size_t i) const { return sizes_[i]; }
  int64_t stride(size_t i) const { return strides_[i]; }
  int64_t columns() const { return sizes_[rank_ - 1]; }
  int64_t column_stride() const { return strides_[rank_ - 1]; }
  size_t bytes() const {
    int64_t elements = 1;
    for (size_t i = 0; i < rank_; ++i) elements *= sizes_[i];
    return elements * (bits_ / 8);
  }
  void swap_first_dimensions() {
    std::swap(sizes_[0], sizes_[1]);
    std::swap(strides_[0], strides_[1]);
  }

  ScalarType dtype() const {
    if (code_ == dlpack::kBFloat && bits_ == 16) return ScalarType::BFloat16;
    if (code_ == dlpack::kUInt && bits_ == 8) return ScalarType::Byte;
    require(code_ == dlpack::kFloat);
    return bits_ == 64 ? ScalarType::Double : bits_ == 32 ? ScalarType::Float : ScalarType::Half;
  }
  template <class S>
  S* data() const {
    return reinterpret_cast<S*>(data_);
  }

  template <class S>
  void check(const Shape& shape) const {
    require(dtype() == kDtype<std::remove_const_t<S>> && rank_ == shape.rank &&
            std::equal(sizes_.begin(), sizes_.begin() + rank_, shape.sizes.begin()));
  }

 private:
  static constexpr int32_t kMostRank = 3;

  char* data_;
  dlpack::TypeCode code_;
  uint8_t bits_;
  size_t rank_;
  std::array<int64_t, kMostRank> sizes_{}, strides_{};
};
using OptionalPythonTensor = std::optional<PythonTensor>;

// What a call was given, one after the other.
class Arguments {
 public:
  Arguments(void* const* objects, ssize_t count) : next_(objects), end_(objects + count) {}

  PythonTensor take() { return PythonTensor(take_object()); }
  OptionalPythonTensor take_or_none() {
    void* const object = take_object();
    return object == python.none ? OptionalPythonTensor() : OptionalPythonTensor(PythonTensor(object));
  }
  void finish() const { require(next_ == end_); }

 private:
  void* take_object() {
    require(next_ != end_);
    return *next_++;
  }

  void* const* next_;
  void* const* end_;
};

// A call of either pass. Its arguments follow the tables in arguments.h: tensors, results, of which backward has the
// gradients first and the saved ones behind the tensors, and then the gradients that it computes.
//
// A layer's sequences are [T, N, columns] and its states [1, N, columns]; of a cell both are [N, columns], and y is
// h_n. A call without a batch lacks N.
class Call {
 public:
  Call(const Function& function, Arguments& arguments) : f_(function), facts_(f_.facts), arguments_(arguments) {}

  void run_forward() {
    take_tensors();
    dispatch_real_dtype(tensors_.input->dtype(), [&]<class S>() {
      ScanParams<S> p = params<S>();
      const bool save = f_.is(kSave);
      const PerResult<bool> wanted{
          .y = f_.is(kLayer), .h_n = true, .c_n = true, .gates = save && !f_.is(kRecompute), .cells = save};
      for_each_result(
          [&](const TensorInfo& info, auto& view, bool is_wanted) {
            if (is_wanted && info.belongs_to(facts_)) write(info, view);
          },
          p, wanted);
      if (!f_.is(kLayer)) p.y = {p.h_n.data, nullptr, nullptr, 0, p.h_n.row_stride, p.h_n.col_stride};
      arguments_.finish();
      const Unlocked others_run(is_long());
      kernels_for<S>(f_.cell, instruction_set()).forward(f_.cell, p, team());
    });
  }

  void run_backward() {
    PerResult<OptionalPythonTensor> grads;
    for_each_result(
        [&](const TensorInfo& info, OptionalPythonTensor& grad) {
          if (info.differentiable() && info.belongs_to(facts_)) grad = arguments_.take_or_none();
        },
        grads);
    take_tensors();
    dispatch_real_dtype(tensors_.input->dtype(), [&]<class S>() {
      ScanParams<S> p = params<S>();
      const PerResult<bool> kept{.y = true, .h_n = false, .c_n = false, .gates = !f_.is(kRecompute), .cells = true};
      for_each_result(
          [&](const TensorInfo& info, auto& view, bool is_kept) {
            if (is_kept && info.belongs_to(facts_)) see(info, arguments_.take(), view);
          },
          p, kept);
      ScanGradients<S> d;
      d.adds_to_weights = f_.is(kAdd);
      struct {
        Sequence<const S>& y;
        Matrix<const S>&h_n, &c_n;
        Sequence<const S> gates;
        Sequence<const Accumulate<S>>& cells;
      } d_results{d.y, d.h_n, d.c_n, {}, d.cells};
      for_each_result(
          [&](const TensorInfo& info, const OptionalPythonTensor& grad, auto& view) {
            if (grad) see(info, *grad, view);
          },
          grads, d_results);
      int row = 0;
      for_each_tensor(
          [&](const TensorInfo& info, auto& view) {
            if (info.belongs_to(facts_) && (f_.needs >> row++ & 1)) write(info, view);
          },
          ViewPerTensor<S>(static_cast<ScanTensors<S>&>(d)));
      arguments_.finish();
      const Unlocked others_run(is_long());
      kernels_for<S>(f_.cell, instruction_set()).backward(f_.cell, p, d, team());
    });
  }

 private:
  void take_tensors() {
    int row = 0;
    for_each_tensor(
        [&](const TensorInfo& info, OptionalPythonTensor& tensor) {
          if (info.belongs_to(facts_) && (f_.present >> row++ & 1)) tensor = arguments_.take();
        },
        tensors_);
    if (f_.is(kPacked)) packed_ = arguments_.take();
    if (facts_.numbers > 0) {
      numbers_ = arguments_.take();
      numbers_->check<double>({facts_.numbers});
      require(numbers_->column_stride() == 1);
    }
    require(tensors_.input.has_value());
  }

  // The sizes that the input has, and then those that the weights have.
  void take_sizes() {
    PythonTensor& x = *tensors_.input;
    const size_t rank = f_.is(kLayer) ? 3 : 2;
    require(x.rank() == rank || x.rank() == rank - 1);
    is_batched_ = x.rank() == rank;
    if (is_batched_ && f_.is(kBatchFirst)) x.swap_first_dimensions();
    sizes_ = {f_.is(kLayer) ? x.size(0) : 1, is_batched_ ? x.size(rank - 2) : 1, x.columns(), 0, 0, facts_};
    if (packed_) {
      packed_->check<uint8_t>({packed_->columns()});
      require(packed_->column_stride() == 1);
      header_ = &packed_header(packed_->data<const char>(), packed_->columns());
      check_packed(*header_, f_.cell, x.dtype(), x.columns());
      require(header_->entries() == 1);
      sizes_.H = header_->H;
      sizes_.R = header_->R;
    } else {
      const OptionalPythonTensor &ih = tensors_.weight_ih, &hh = tensors_.weight_hh;
      require(ih && hh && ih->rank() == 2 && hh->rank() == 2);
      sizes_.H = ih->size(0) / facts_.input_gates;
      sizes_.R = hh->size(1);
      require(tensors_.weight_hr || sizes_.R == sizes_.H);
    }
    require(std::min({sizes_.T, sizes_.N, sizes_.I, sizes_.H, sizes_.R}) > 0);
    check_bounds(sizes_);
  }

  template <class S>
  ScanParams<S> params() {
    take_sizes();
    ScanParams<S> p;
    for_each_tensor(
        [&](const TensorInfo& info, const OptionalPythonTensor& tensor, auto& view) {
          if (tensor) see(info, *tensor, view);
        },
        tensors_, ViewPerTensor<const S>(static_cast<ScanTensors<const S>&>(p)));
    p.input_size = sizes_.I;
    p.hidden_size = sizes_.H;
    p.output_size = sizes_.R;
    p.schedule.T = sizes_.T;
    p.schedule.N = sizes_.N;
    p.schedule.reverse = f_.is(kReverse);
    if (numbers_) p.numbers = numbers_->data<const double>();
    if (header_) set_packed(*header_, 0, f_.cell, p);
    return p;
  }

  // Takes a result, whose memory is fresh.
  template <class View>
  void write(const TensorInfo& info, View& view) const {
    const PythonTensor tensor = arguments_.take();
    see(info, tensor, view);
    prefer_huge_pages(view.data, tensor.bytes());
  }

  // Checks a tensor of the tables and views it.
  template <class S>
  void see(const TensorInfo& info, const PythonTensor& tensor, Sequence<S>& view) const {
    const int64_t columns = length(info.columns, sizes_);
    const bool layer = f_.is(kLayer);
    tensor.check<S>(shape(layer, sizes_.T, columns));
    const int64_t sample_stride = is_batched_ ? tensor.stride(layer) : 0;
    view = {tensor.data<S>(), nullptr, nullptr, layer ? tensor.stride(0) : 0, sample_stride, tensor.column_stride()};
  }
  template <class S>
  void see(const TensorInfo& info, const PythonTensor& tensor, Matrix<S>& view) const {
    const int64_t columns = length(info.columns, sizes_);
    if (info.role == Role::kMatrix)
      tensor.check<S>({length(info.rows, sizes_), columns});
    else
      tensor.check<S>(shape(f_.is(kLayer), 1, columns));
    view = {tensor.data<S>(), tensor.rank() > 1 ? tensor.stride(tensor.rank() - 2) : 0, tensor.column_stride()};
  }
  template <class S>
  void see(const TensorInfo& info, const PythonTensor& tensor, Vector<S>& view) const {
    tensor.check<S>({length(info.columns, sizes_)});
    view = {tensor.data<S>(), tensor.column_stride()};
  }
  Shape shape(bool layer, int64_t first, int64_t columns) const {
    if (layer) return is_batched_ ? Shape{first, sizes_.N, columns} : Shape{first, columns};
    return is_batched_ ? Shape{sizes_.N, columns} : Shape{columns};
  }

  // To release the interpreter's lock and to take it again pays only for some 20 microseconds.
  bool is_long() const { return sizes_.T * sizes_.N * sizes_.I * sizes_.H > int64_t{1} << 17; }

  Team team() const { return present_team_for(sizes_, sizes_.T * sizes_.N); }

  const Function& f_;
  const CellFacts& facts_;
  Arguments& arguments_;
  PerTensor<OptionalPythonTensor> tensors_;
  OptionalPythonTensor packed_, numbers_;
  const PackedHeader* header_ = nullptr;
  ScanSizes sizes_{};
  bool is_batched_ = false;
};

// Returns True, False where the call does not fit, or null with an exception set.
template <auto kPass>
void* call_function(void* self, void* const* objects, ssize_t count) {
  void* answer = python.no;
  try {
    const void* const function = python.capsule_pointer(self, kCapsule);
    if (!function) return nullptr;
    Arguments arguments(objects, count);
    (Call(*static_cast<const Function*>(function), arguments).*kPass)();
    answer = python.yes;
  } catch (const Raised&) {
    return nullptr;
  } catch (const std::exception&) {
  }
  python.take_reference(answer);
  return answer;
}

void* new_function(decltype(MethodDef::function) function, const char* cell, int options, unsigned present,
                   unsigned needs) {
  try {
    return new Function{
        {"fastrnn.direct", function, kFastCall, nullptr}, cell, cell_facts(cell), options, present, needs};
  } catch (const std::exception&) {
    return nullptr;
  }
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

// Return what Python makes functions of: a PyMethodDef, for a capsule with the same address, which lives forever; null
// where the cell is unknown.
FASTRNN_DIRECT void* fastrnn_direct_forward(const char* cell, int options, unsigned present) {
  using namespace fastrnn::cpu;
  return new_function(call_function<&Call::run_forward>, cell, options, present, 0);
}
FASTRNN_DIRECT void* fastrnn_direct_backward(const char* cell, int options, unsigned present, unsigned needs) {
  using namespace fastrnn::cpu;
  return new_function(call_function<&Call::run_backward>, cell, options, present, needs);
}
