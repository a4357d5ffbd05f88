// The C functions of fastrnn_stream.h: chunks, states, damaged files, threads, and that a step allocates nothing.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "check.h"
#include "stream/fastrnn_stream.h"
#include "stream/model_file.h"

namespace {
std::atomic<long> allocations{0};
}

// Where the program is linked dynamically, and no sanitizer has its own, malloc can be replaced.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
constexpr bool kCounts = true;

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
}
#else
constexpr bool kCounts = false;
#endif

namespace fastrnn::test {
namespace {

using stream::FileHeader;

struct Close {
  void operator()(fastrnn_stream* stream) const { fastrnn_stream_close(stream); }
};
using Handle = std::unique_ptr<fastrnn_stream, Close>;
using Bytes = std::vector<unsigned char>;

void seal(Bytes& file) {
  const uint32_t checksum = stream::crc32(file.data() + 16, file.size() - 16);
  std::memcpy(file.data() + 12, &checksum, sizeof checksum);
}

Bytes make_file(std::string_view cell, int gates, int layers, int64_t I, int64_t H, int64_t R, int type,
                bool projects_to_all = false) {
  const bool projected = R != H || projects_to_all;
  FileHeader header{FileHeader::kMagic, FileHeader::kVersion, 0, {}, layers, type, 1, projected, I, H, R};
  std::copy(cell.begin(), cell.end(), header.cell.begin());
  int64_t floats = 0;
  for (int layer = 0; layer < layers; ++layer)
    floats += gates * H * ((layer ? R : I) + R + 2) + (projected ? R * H : 0);
  Bytes file(sizeof header + floats * sizeof(float));
  std::memcpy(file.data(), &header, sizeof header);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-0.3f, 0.3f);
  for (int64_t i = 0; i < floats; ++i) {
    const float value = uniform(random);
    std::memcpy(file.data() + sizeof header + i * sizeof(float), &value, sizeof value);
  }
  seal(file);
  return file;
}

Handle open(const Bytes& file, int64_t batch, int64_t most_steps = 16) {
  return Handle(fastrnn_stream_read(file.data(), file.size(), batch, most_steps, nullptr));
}

std::vector<float> signal(int64_t size) {
  std::vector<float> x(size);
  for (int64_t i = 0; i < size; ++i) x[i] = std::sin(0.1f * i) + 0.01f * (i % 7);
  return x;
}

void check_chunks(const Bytes& file, int64_t N, const std::string& name) {
  const Handle whole = open(file, N), parts = open(file, N, 3);
  check(whole && parts, name + " opens");
  if (!whole || !parts) return;
  const int64_t I = fastrnn_stream_input_size(whole.get()), R = fastrnn_stream_output_size(whole.get());
  const int64_t T = 23;
  const std::vector<float> x = signal(T * N * I);
  std::vector<float> y(T * N * R), z(T * N * R);
  check(fastrnn_stream_step(whole.get(), x.data(), T, y.data()) == FASTRNN_STREAM_OK, name + " runs");
  for (int64_t t = 0, steps = 1; t < T; t += steps, steps = std::min<int64_t>(steps + 1, T - t))
    fastrnn_stream_step(parts.get(), x.data() + t * N * I, steps, z.data() + t * N * R);
  check(y == z, name + ": chunks of any length give the same bits");

  // A sample that is reset runs as at the start, the others go on.
  std::vector<float> first(N * R), after(N * R), went_on(N * R);
  fastrnn_stream_step(parts.get(), x.data(), 1, went_on.data());
  fastrnn_stream_reset(whole.get(), N - 1);
  fastrnn_stream_step(whole.get(), x.data(), 1, after.data());
  const Handle fresh = open(file, N);
  fastrnn_stream_step(fresh.get(), x.data(), 1, first.data());
  check(std::equal(after.end() - R, after.end(), first.end() - R), name + ": the sample begins anew");
  check(std::equal(after.begin(), after.end() - R, went_on.begin()), name + ": the others go on");

  const int64_t L = fastrnn_stream_layers(whole.get()), H = fastrnn_stream_hidden_size(whole.get());
  std::vector<float> h(L * N * R), c(L * N * H);
  check(fastrnn_stream_get_state(whole.get(), h.data(), c.data()) == FASTRNN_STREAM_OK, name + ": state");
  fastrnn_stream_set_state(fresh.get(), h.data(), c.data());
  fastrnn_stream_step(whole.get(), x.data(), 4, y.data());
  fastrnn_stream_step(fresh.get(), x.data(), 4, z.data());
  check(std::equal(y.begin(), y.begin() + 4 * N * R, z.begin()), name + ": a state goes from one to the other");

  fastrnn_stream_reset(whole.get(), -1);
  fastrnn_stream_step(whole.get(), x.data(), 1, after.data());
  check(after == first, name + ": all begin anew");
}

void check_allocations(const Bytes& file, const std::string& name, int64_t N = 2,
                       const std::vector<int64_t>& chunks = {1, 16, 5, 100, 1}) {
  const Handle stream = open(file, N);
  const int64_t I = fastrnn_stream_input_size(stream.get()), R = fastrnn_stream_output_size(stream.get());
  const int64_t most = *std::max_element(chunks.begin(), chunks.end());
  const std::vector<float> x = signal(most * N * I);
  std::vector<float> y(most * N * R);
  long counted = -1;
  const auto run = [&] {
    const long before = allocations;
    for (const int64_t steps : chunks) fastrnn_stream_step(stream.get(), x.data(), steps, y.data());
    fastrnn_stream_reset(stream.get(), 0);
    counted = allocations - before;
  };
  run();
  check(counted == 0, name + ": the first calls allocate nothing");
  std::thread(run).join();
  check(counted == 0, name + ": nor do those of another thread");
}

// Sums of int8 are exact: the sets differ in the rounding of what follows, by which an activation may round otherwise.
void check_sets(const Bytes& file, const std::string& name) {
  const Handle best = open(file, 3), plain(fastrnn_stream_read(file.data(), file.size(), 3, 16, "plain"));
  if (!plain) return;  // a build without it
  const int64_t I = fastrnn_stream_input_size(best.get()), R = fastrnn_stream_output_size(best.get());
  const std::vector<float> x = signal(20 * 3 * I);
  std::vector<float> y(20 * 3 * R), z(y.size());
  fastrnn_stream_step(best.get(), x.data(), 20, y.data());
  fastrnn_stream_step(plain.get(), x.data(), 20, z.data());
  float difference = 0;
  for (std::size_t i = 0; i < y.size(); ++i) difference = std::max(difference, std::abs(y[i] - z[i]));
  check(difference < 0.01f, name + ": the sets agree");
}

void check_damage(const Bytes& file) {
  for (std::size_t at = 0; at < file.size(); at += at < sizeof(FileHeader) ? 1 : 97)
    for (const int bit : {0, 7}) {
      Bytes damaged = file;
      damaged[at] ^= 1 << bit;
      check(!open(damaged, 1), "a file with another byte " + std::to_string(at) + " is refused");
    }
  for (std::size_t size = 0; size < file.size(); size += 61)
    check(!open(Bytes(file.begin(), file.begin() + size), 1),
          "a file of " + std::to_string(size) + " bytes is refused");
  // A header that its checksum confirms, and that is wrong.
  for (std::size_t at = 16; at < sizeof(FileHeader); ++at)
    for (const int value : {0xff, 0x7f, 0x80}) {
      Bytes damaged = file;
      if (damaged[at] == value) continue;
      damaged[at] = static_cast<unsigned char>(value);
      seal(damaged);
      check(!open(damaged, 1), "a header with " + std::to_string(value) + " at " + std::to_string(at) + " is refused");
    }
  check(!fastrnn_stream_open("/nowhere", 1, 1) && std::strstr(fastrnn_stream_error(), "/nowhere"), "a path is named");
  check(!fastrnn_stream_open(nullptr, 1, 1), "a null path is refused");
  check(!open(file, 0) && !open(file, 1, 0), "a batch and chunk of nothing are refused");
  check(!fastrnn_stream_read(file.data(), file.size(), 1, 1, "mmx"), "an unknown instruction set is refused");
  check(!open(file, 1 << 13, 1 << 12), "more rows at once than sizes allow are refused");
  check(!open(make_file("lstm", 4, 1, 3, 8, 8, 0, true), 1), "a projection to as many units is refused");
  Bytes moved(file.size() + 1);
  std::copy(file.begin(), file.end(), moved.begin() + 1);
  check(Handle(fastrnn_stream_read(moved.data() + 1, file.size(), 1, 1, nullptr)) != nullptr, "bytes lie anywhere");
  const Handle stream = open(file, 1);
  check(fastrnn_stream_step(stream.get(), nullptr, -1, nullptr) == FASTRNN_STREAM_ERROR &&
            std::strstr(fastrnn_stream_error(), "-1"),
        "a negative number of steps is refused");
  check(fastrnn_stream_step(stream.get(), nullptr, 0, nullptr) == FASTRNN_STREAM_OK, "no steps are none");
}

// Two threads on one stream: one of them is told.
void check_threads(const Bytes& file) {
  const Handle stream = open(file, 8, 64);
  const int64_t I = fastrnn_stream_input_size(stream.get()), R = fastrnn_stream_output_size(stream.get());
  const std::vector<float> x = signal(64 * 8 * I);
  std::atomic<int> refused{0}, ran{0}, other{0};
  const auto work = [&] {
    std::vector<float> y(64 * 8 * R);
    for (int i = 0; i < 300; ++i) switch (fastrnn_stream_step(stream.get(), x.data(), 64, y.data())) {
        case FASTRNN_STREAM_OK: ++ran; break;
        case FASTRNN_STREAM_BUSY: ++refused; break;
        default: ++other;
      }
  };
  std::thread one(work), two(work);
  one.join();
  two.join();
  check(ran + refused == 600 && other == 0 && ran > 0, "a call runs or is refused");
}

// What decays is 0 in the end, and the caller's numbers are as they were.
void check_denormals(const Bytes& file) {
  const Handle stream = open(file, 1);
  const int64_t H = fastrnn_stream_hidden_size(stream.get());
  std::vector<float> h(H, 1e-40f), x(fastrnn_stream_input_size(stream.get()), 0.0f), y(H);
  fastrnn_stream_set_state(stream.get(), h.data(), nullptr);
  fastrnn_stream_step(stream.get(), x.data(), 1, y.data());
  const Handle fresh = open(file, 1);
  std::vector<float> z(H);
  fastrnn_stream_step(fresh.get(), x.data(), 1, z.data());
  check(y == z, "a denormal state is 0");
  volatile float small = 1e-38f;
  check(small * 0.01f > 0, "the caller has denormals");
}

}  // namespace
}  // namespace fastrnn::test

int main() {
  using namespace fastrnn::test;
  const auto lstm = make_file("lstm", 4, 2, 3, 19, 19, 0);
  for (const int type : {0, 1, 2})
    for (const int64_t N : {1, 20}) {
      const std::string name = " of type " + std::to_string(type) + ", N " + std::to_string(N);
      check_chunks(make_file("lstm", 4, 2, 3, 19, 19, type), N, "lstm" + name);
      check_chunks(make_file("lstm", 4, 1, 1, 40, 7, type), N, "projected lstm" + name);
      check_chunks(make_file("gru", 3, 1, 5, 33, 33, type), N, "gru" + name);
      check_chunks(make_file("rnn_relu", 1, 3, 2, 5, 5, type), N, "rnn" + name);
    }
  check_sets(make_file("lstm", 4, 2, 3, 83, 83, 2), "lstm");
  check_sets(make_file("gru", 3, 1, 70, 33, 33, 2), "gru");
  if (kCounts) {
    check(allocations > 0, "allocations are counted");
    check_allocations(lstm, "lstm");
    check_allocations(make_file("gru", 3, 1, 5, 33, 33, 2), "gru of int8");
    check_allocations(make_file("rnn_tanh", 1, 2, 3, 5, 5, 1), "rnn of bfloat16");
    check_allocations(lstm, "a batch whose buffers take more than a thread keeps", 1 << 18, {1, 1});
  }
  check_damage(lstm);
  check_threads(lstm);
  check_denormals(make_file("gru", 3, 1, 5, 33, 33, 0));
  return finish();
}
