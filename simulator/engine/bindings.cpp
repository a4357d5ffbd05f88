// The engine's Python module: settings go in, findings and counters come out; device memory and launches. Errors of use
// raise; a launch returns its cudaError_t, because tests expect some of them. Functions that may run kernels or wait
// for the engine's lock release Python's own lock: host code holds the engine's while it asks Python for a missing
// kernel.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "machine.h"
#include "memory.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using namespace sim;

struct CounterName {
  Counter counter;
  const char* name;
};

#define NAMED(counter) \
  CounterName { Counter::counter, #counter }
constexpr CounterName kNames[] = {
    NAMED(instructions),
    NAMED(integer),
    NAMED(fp32),
    NAMED(fp64),
    NAMED(fp16),
    NAMED(mufu),
    NAMED(convert),
    NAMED(mma),
    NAMED(mma_half),
    NAMED(mma_tf32),
    NAMED(shuffle),
    NAMED(branch),
    NAMED(global_loads),
    NAMED(global_stores),
    NAMED(global_load_bytes),
    NAMED(global_store_bytes),
    NAMED(global_load_sectors),
    NAMED(global_store_sectors),
    NAMED(global_requests),
    NAMED(shared_loads),
    NAMED(shared_stores),
    NAMED(shared_requests),
    NAMED(shared_wavefronts),
    NAMED(shared_conflicts),
    NAMED(local_accesses),
    NAMED(atomics),
    NAMED(polls),
    NAMED(repolled_bytes),
    NAMED(polling),
    NAMED(fences),
    NAMED(barriers),
    NAMED(collectives),
    NAMED(async_copies),
    NAMED(async_copy_bytes),
};
#undef NAMED
static_assert(std::size(kNames) == kCounters);

py::dict by_name(const uint64_t* counters) {
  py::dict out;
  for (const auto& [counter, name] : kNames) out[name] = counters[static_cast<int>(counter)];
  return out;
}

py::tuple three(const uint32_t* values) { return py::make_tuple(values[0], values[1], values[2]); }

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error("CUDA error " + std::to_string(error) + ": " + cudaGetErrorString(error));
}

void set(const std::string& name, uint64_t value) {
  Settings& s = machine().settings;
  Device& device = machine().device;
  if (name == "schedule_seed" || name == "numeric_seed") {
    (name == "schedule_seed" ? s.schedule_seed : s.numeric_seed) = value;
    machine().launch_count = 0;
  } else if (name == "races") {
    s.races = value != 0;
  } else if (name == "store_buffer") {
    s.store_buffer = value != 0;
  } else if (name == "traffic") {
    s.traffic = value != 0;
  } else if (name == "round_ns") {
    s.round_ns = value;
  } else if (name == "idle_rounds") {
    s.idle_rounds = value;
  } else if (name == "branch_limit") {
    s.branch_limit = value;
  } else if (name == "lost_blocks") {
    s.lost_blocks = value;
  } else if (name == "multiprocessors") {
    device.sms = static_cast<int>(value);
  } else if (name == "ptx_version") {
    device.ptx_version = static_cast<int>(value);
  } else if (name == "cooperative_error") {
    device.cooperative_error = static_cast<int>(value);
  } else {
    throw std::invalid_argument("no setting " + name);
  }
}

py::list findings() {
  py::list out;
  for (const Finding& f : machine().findings)
    out.append(py::dict("kind"_a = f.kind, "text"_a = f.text, "kernel"_a = f.kernel, "source"_a = f.source,
                        "source_line"_a = f.source_line, "ptx_line"_a = f.ptx_line, "instruction"_a = f.instruction,
                        "block"_a = three(f.block), "thread"_a = three(f.thread), "count"_a = f.count));
  return out;
}

py::list launches() {
  py::list out;
  for (const LaunchReport& r : machine().launches)
    out.append(py::dict("kernel"_a = r.kernel, "grid"_a = three(r.grid), "block"_a = three(r.block),
                        "resident"_a = r.resident, "total"_a = by_name(r.total), "busiest"_a = by_name(r.busiest)));
  return out;
}

std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const auto& [name, kernel] : machine().kernels) names.push_back(name);
  return names;
}

const KernelInfo& kernel_named(const std::string& name) {
  const auto at = machine().kernels.find(name);
  if (at != machine().kernels.end()) return at->second;
  std::string text = "no kernel " + name + "; there are";
  for (const std::string& known : kernels()) text += " " + known;
  throw py::key_error(text);
}

std::string listed(const std::vector<size_t>& sizes) {
  std::string text = "[";
  for (const size_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

using Extent = std::array<uint32_t, 3>;

// Each argument comes as its bytes; returns the cudaError_t.
int launch_kernel(const std::string& name, const Extent& grid, const Extent& block,
                  const std::vector<py::bytes>& arguments, uint32_t shared, bool cooperative) {
  const KernelInfo& kernel = kernel_named(name);
  std::vector<size_t> taken, passed;
  for (uint32_t i = 0; i < kernel.param_count; ++i) taken.push_back(kernel.params[i].bytes);
  for (const py::bytes& argument : arguments) passed.push_back(std::string_view(argument).size());
  if (taken != passed)
    throw py::type_error(name + " takes parameters of " + listed(taken) + " bytes, got " + listed(passed));
  std::vector<std::byte> params(kernel.param_bytes + 1);
  for (uint32_t i = 0; i < kernel.param_count; ++i)
    std::memcpy(&params[kernel.params[i].offset], std::string_view(arguments[i]).data(), taken[i]);
  const py::gil_scoped_release unlocked;
  return launch(
      {&kernel, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, cooperative, params.data()});
}

void on_missing_kernel(py::function provide) {
  machine().provide_kernel = [provide = std::move(provide)](const std::string& kernel) {
    const py::gil_scoped_acquire locked;
    try {
      provide(kernel);
    } catch (py::error_already_set& error) {  // host code that was compiled by nvcc lies between this and Python
      error.discard_as_unraisable("while a missing kernel was provided");
    }
  };
}

uint64_t allocate(size_t size) {
  void* out = nullptr;
  check(cudaMalloc(&out, std::max<size_t>(size, 1)));
  return reinterpret_cast<uint64_t>(out);
}

void* pointer(uint64_t address) { return reinterpret_cast<void*>(address); }

// The buffer's bytes, which must lie in a row.
py::buffer_info contiguous(const py::buffer& buffer, bool writable) {
  py::buffer_info info = buffer.request(writable);
  if (!PyBuffer_IsContiguous(info.view(), 'C')) throw std::invalid_argument("the array is not contiguous");
  return info;
}

void write_array(uint64_t address, const py::buffer& from) {
  const py::buffer_info info = contiguous(from, false);
  const py::gil_scoped_release unlocked;
  check(cudaMemcpy(pointer(address), info.ptr, info.size * info.itemsize, cudaMemcpyHostToDevice));
}

void read_array(uint64_t address, const py::buffer& to) {
  const py::buffer_info info = contiguous(to, true);
  const py::gil_scoped_release unlocked;
  check(cudaMemcpy(info.ptr, pointer(address), info.size * info.itemsize, cudaMemcpyDeviceToHost));
}

std::string cudart() {
  Dl_info info{};
  dladdr(dlsym(RTLD_DEFAULT, "cudaMalloc"), &info);
  return info.dli_fname ? info.dli_fname : "";
}

}  // namespace

PYBIND11_MODULE(bindings, m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("cudart", &cudart, "The path of the library that host code finds as libcudart.");
  m.def(
      "set_device", [](const std::string& architecture) { machine().device = device_named(architecture); },
      "architecture"_a);
  m.def("set", &set, "name"_a, "value"_a);
  m.def(
      "set_registers", [](const std::string& kernel, uint32_t registers) { machine().registers[kernel] = registers; },
      "kernel"_a, "registers"_a);
  m.def("findings", &findings);
  m.def("launches", &launches);
  m.def("kernels", &kernels, "The names of the kernels of all modules that were loaded.");
  m.def(
      "queries", [] { return machine().queries; },
      "How often host code asked about devices and kernels since the last clear().");
  m.def("take_printed", [] { return py::bytes(std::exchange(machine().printed, {})); });
  m.def("clear", [] {
    machine().queries = 0;
    machine().findings.clear();
    machine().launches.clear();
    cudaGetLastError();
  });
  m.def("error_text", [](int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }, "error"_a);
  m.def("launch", &launch_kernel, "kernel"_a, "grid"_a, "block"_a, "arguments"_a, "shared"_a, "cooperative"_a);
  m.def("on_missing_kernel", &on_missing_kernel, "provide"_a);
  m.def("allocate", &allocate, "size"_a, Unlocked());
  m.def("free", [](uint64_t address) { check(cudaFree(pointer(address))); }, "address"_a, Unlocked());
  m.def("write", &write_array, "address"_a, "array"_a);
  m.def("read", &read_array, "address"_a, "array"_a);
  m.def(
      "fill", [](uint64_t address, int byte, size_t size) { check(cudaMemset(pointer(address), byte, size)); },
      "address"_a, "byte"_a, "size"_a, Unlocked());
  m.def("written", &written_prefix, "address"_a, "size"_a, "How many leading bytes of the range something wrote.");
}
