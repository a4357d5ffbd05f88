// Layers that run a signal chunk by chunk: their packed weights, states and buffers.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "cpu/buffer.h"
#include "cpu/instruction_sets.h"
#include "cpu/team.h"
#include "stream/fastrnn_stream.h"
#include "stream/model_file.h"

namespace fastrnn::stream {
namespace {

// Takes denormal numbers for zero on this thread as long as it lives: a decaying signal would slow every step.
class WithoutDenormals {
 public:
  WithoutDenormals() : before_(read()) { write(before_ | kFlush); }
  WithoutDenormals(const WithoutDenormals&) = delete;
  ~WithoutDenormals() { write(before_); }

 private:
#if defined(__x86_64__)
  using Register = unsigned;
  static constexpr Register kFlush = 0x8040;  // results and operands
  static Register read() { return _mm_getcsr(); }
  static void write(Register value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register kFlush = uint64_t{1} << 24;
  static Register read() {
    Register value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(Register value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
  using Register = int;
  static constexpr Register kFlush = 0;
  static Register read() { return 0; }
  static void write(Register) {}
#endif
  Register before_;
};

// One thread's turn on a stream, as long as it lives. A child that was forked within another thread's turn finds the
// state half written: for it that turn never ends.
class Turn {
 public:
  explicit Turn(std::atomic_flag& taken) : taken_(taken), mine_(!taken.test_and_set(std::memory_order_acquire)) {}
  Turn(const Turn&) = delete;
  ~Turn() {
    if (mine_) taken_.clear(std::memory_order_release);
  }

  explicit operator bool() const { return mine_; }

 private:
  std::atomic_flag& taken_;
  const bool mine_;
};

class Stream {
 public:
  Stream(const ModelFile& file, int64_t batch, int64_t most_steps, const cpu::InstructionSet& set)
      : header(file.header()), N(batch), most_steps_(most_steps), kernels_(set.kernels<float>()) {
    const int64_t H = header.hidden_size, R = header.output_size;
    for (int64_t i = 0; i < header.layers; ++i) {
      Layer layer;
      layer.params.weights = file.weights(i);
      layer.params.packed_as = static_cast<cpu::WeightType>(header.weight_type);
      layer.params.input_size = file.input_size(i);
      layer.params.hidden_size = H;
      layer.params.output_size = R;
      layer.params.schedule.N = N;
      layer.packed = cpu::Memory(kernels_.packed_bytes(header.cell_name(), layer.params));
      kernels_.pack(header.cell_name(), layer.params, layer.packed.get());
      layer.params.packed = layer.packed.get();
      layer.params.weights = {};
      for (auto& h : layer.h) h.assign(N * R, 0);
      if (file.has_cell_state())
        for (auto& c : layer.c) c.assign(N * H, 0);
      layers_.push_back(std::move(layer));
    }
    for (auto& between : between_) between.assign(header.layers > 1 ? most_steps * N * R : 0, 0);
    // The kernels' buffers grow in the first calls and then stay.
    const std::vector<float> input(most_steps * N * header.input_size), output(most_steps * N * R);
    for (int i = 0; i < 3; ++i) run(input.data(), most_steps, const_cast<float*>(output.data()));
    reset(0, N);
  }

  void run(const float* input, int64_t steps, float* output) {
    const WithoutDenormals guard;
    const cpu::MemoryStack::Instead own(memory_);
    for (int64_t begin = 0; begin < steps; begin += most_steps_) {
      const int64_t count = std::min(most_steps_, steps - begin);
      const float* x = input + begin * N * header.input_size;
      for (int64_t i = 0; i < header.layers; ++i) {
        const bool last = i + 1 == header.layers;
        float* const y = last ? output + begin * N * header.output_size : between_[i % 2].data();
        run_layer(layers_[i], x, count, y);
        x = y;
      }
    }
  }

  void reset(int64_t first, int64_t last) {
    for (Layer& layer : layers_) {
      const auto clear = [&](std::vector<float>& state, int64_t columns) {
        if (!state.empty()) std::fill(state.begin() + first * columns, state.begin() + last * columns, 0.0f);
      };
      clear(layer.h[layer.now], header.output_size);
      clear(layer.c[layer.now], header.hidden_size);
    }
  }

  // Calls f(state of a layer, its place among all layers') for h, and for c where it is given.
  template <class Float, class F>
  void for_states(Float* h, Float* c, F&& f) {
    for (Layer& layer : layers_) {
      f(layer.h[layer.now], h);
      h += layer.h[0].size();
      if (c) f(layer.c[layer.now], c);
      if (c) c += layer.c[0].size();
    }
  }

  const FileHeader header;
  const int64_t N;
  std::atomic_flag taken;

 private:
  struct Layer {
    cpu::ScanParams<float> params;
    cpu::Memory packed;
    std::array<std::vector<float>, 2> h, c;  // before a call and after it
    int now = 0;
  };

  void run_layer(Layer& layer, const float* x, int64_t steps, float* y) {
    const int64_t I = layer.params.input_size, H = header.hidden_size, R = header.output_size;
    cpu::ScanParams<float>& p = layer.params;
    p.schedule.T = steps;
    p.x = {x, nullptr, nullptr, N * I, I, 1};
    p.y = {y, nullptr, nullptr, N * R, R, 1};
    const int next = 1 - layer.now;
    p.h_0 = {layer.h[layer.now].data(), R, 1};
    p.h_n = {layer.h[next].data(), R, 1};
    if (!layer.c[0].empty()) {
      p.c_0 = {layer.c[layer.now].data(), H, 1};
      p.c_n = {layer.c[next].data(), H, 1};
    }
    kernels_.forward(header.cell_name(), p, cpu::Team(1, nullptr));
    layer.now = next;
  }

  const int64_t most_steps_;
  const cpu::Kernels<float>& kernels_;
  std::vector<Layer> layers_;
  std::array<std::vector<float>, 2> between_;  // outputs of all layers but the last, in turn
  cpu::MemoryStack memory_{true};
};

// A failure is told without allocating: it may be that there is no memory.
thread_local char last_error[512] = "";

int fail(int status, const char* what) {
  std::snprintf(last_error, sizeof last_error, "fastrnn: %s", what);
  return status;
}

// Runs body() and returns what a call of the library returns: nothing is thrown at C.
template <class Body>
int guarded(Body&& body) {
  try {
    body();
    return FASTRNN_STREAM_OK;
  } catch (const std::bad_alloc&) {
    return fail(FASTRNN_STREAM_ERROR, "there is too little memory");
  } catch (const std::exception& error) {
    return fail(FASTRNN_STREAM_ERROR, error.what());
  }
}

// The same on a stream that no other thread runs.
template <class Body>
int inside(Stream& stream, Body&& body) {
  const Turn turn(stream.taken);
  return turn ? guarded(body) : fail(FASTRNN_STREAM_BUSY, "another thread runs this stream now");
}

std::unique_ptr<Stream> read(const void* data, std::size_t size, int64_t batch, int64_t most_steps, const char* name) {
  constexpr int64_t kMost = int64_t{1} << 24;
  if (batch < 1 || batch > kMost || most_steps < 1 || most_steps > kMost / batch)
    throw std::runtime_error("batch, most_steps and their product must be 1 to 2^24");
  const cpu::InstructionSet* set = cpu::find_instruction_set(name ? name : "");
  if (!set || !set->has<float>())
    throw std::runtime_error("the instruction set must be one of " + cpu::instruction_sets(true));
  return std::make_unique<Stream>(ModelFile(data, size), batch, most_steps, *set);
}

}  // namespace
}  // namespace fastrnn::stream

using fastrnn::stream::Stream;

struct fastrnn_stream {
  std::unique_ptr<Stream> stream;
};

namespace {

template <class Make>
fastrnn_stream* opened(Make&& make) {
  fastrnn_stream* out = nullptr;
  fastrnn::stream::guarded([&] { out = new fastrnn_stream{make()}; });
  return out;
}

}  // namespace

fastrnn_stream* fastrnn_stream_open(const char* path, int64_t batch, int64_t most_steps) {
  return opened([&] {
    std::ifstream file(path ? path : "", std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + std::string(path ? path : "a null path"));
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    return fastrnn::stream::read(bytes.data(), bytes.size(), batch, most_steps, nullptr);
  });
}

fastrnn_stream* fastrnn_stream_read(const void* data, size_t size, int64_t batch, int64_t most_steps,
                                    const char* instruction_set) {
  return opened([&] { return fastrnn::stream::read(data, size, batch, most_steps, instruction_set); });
}

void fastrnn_stream_close(fastrnn_stream* stream) { delete stream; }

int fastrnn_stream_step(fastrnn_stream* stream, const float* input, int64_t steps, float* output) {
  return fastrnn::stream::inside(*stream->stream, [&] {
    if (steps < 0) throw std::runtime_error("steps is " + std::to_string(steps) + ", expected 0 or more");
    stream->stream->run(input, steps, output);
  });
}

int fastrnn_stream_reset(fastrnn_stream* stream, int64_t sample) {
  Stream& all = *stream->stream;
  return fastrnn::stream::inside(all, [&] {
    if (sample < -1 || sample >= all.N)
      throw std::runtime_error("sample is " + std::to_string(sample) + ", expected -1 to " + std::to_string(all.N - 1));
    sample < 0 ? all.reset(0, all.N) : all.reset(sample, sample + 1);
  });
}

int fastrnn_stream_get_state(fastrnn_stream* stream, float* h, float* c) {
  return fastrnn::stream::inside(*stream->stream, [&] {
    stream->stream->for_states(
        h, c, [](const std::vector<float>& state, float* out) { std::copy(state.begin(), state.end(), out); });
  });
}

int fastrnn_stream_set_state(fastrnn_stream* stream, const float* h, const float* c) {
  return fastrnn::stream::inside(*stream->stream, [&] {
    stream->stream->for_states(
        h, c, [](std::vector<float>& state, const float* in) { std::copy_n(in, state.size(), state.begin()); });
  });
}

int64_t fastrnn_stream_batch(const fastrnn_stream* stream) { return stream->stream->N; }
int64_t fastrnn_stream_layers(const fastrnn_stream* stream) { return stream->stream->header.layers; }
int64_t fastrnn_stream_input_size(const fastrnn_stream* stream) { return stream->stream->header.input_size; }
int64_t fastrnn_stream_hidden_size(const fastrnn_stream* stream) { return stream->stream->header.hidden_size; }
int64_t fastrnn_stream_output_size(const fastrnn_stream* stream) { return stream->stream->header.output_size; }

const char* fastrnn_stream_error(void) { return fastrnn::stream::last_error; }
