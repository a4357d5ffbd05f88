// What the tests' Python side calls: settings in, findings and counters out, as JSON.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <utility>

#include "machine.h"
#include "memory.h"

namespace {

using namespace sim;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 32) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + '"';
}

template <class T>
std::string list(const T* values, int n) {
  std::string out = "[";
  for (int i = 0; i < n; ++i) out += (i ? "," : "") + std::to_string(values[i]);
  return out + "]";
}

std::string answer;  // lives until the next question

}  // namespace

extern "C" {

int simulator_set_device(const char* architecture) {
  try {
    machine().device = device_named(architecture);
    return 0;
  } catch (const std::invalid_argument&) {
    return 1;
  }
}

int simulator_set(const char* name, uint64_t value) {
  Settings& s = machine().settings;
  const std::string key = name;
  if (key == "schedule_seed") {
    s.schedule_seed = value;
    machine().launch_count = 0;
  } else if (key == "numeric_seed") {
    s.numeric_seed = value;
    machine().launch_count = 0;
  } else if (key == "races") {
    s.races = value != 0;
  } else if (key == "store_buffer") {
    s.store_buffer = value != 0;
  } else if (key == "traffic") {
    s.traffic = value != 0;
  } else if (key == "round_ns") {
    s.round_ns = value;
  } else if (key == "idle_rounds") {
    s.idle_rounds = value;
  } else if (key == "branch_limit") {
    s.branch_limit = value;
  } else if (key == "lost_blocks") {
    s.lost_blocks = value;
  } else if (key == "multiprocessors") {
    machine().device.sms = static_cast<int>(value);
  } else if (key == "ptx_version") {
    machine().device.ptx_version = static_cast<int>(value);
  } else if (key == "cooperative_error") {
    machine().device.cooperative_error = static_cast<int>(value);
  } else {
    return 1;
  }
  return 0;
}

void simulator_set_registers(const char* kernel, uint32_t registers) { machine().registers[kernel] = registers; }

const char* simulator_findings() {
  answer = "[";
  for (const Finding& f : machine().findings) {
    if (answer.size() > 1) answer += ",";
    answer += "{\"kind\":" + quoted(f.kind) + ",\"text\":" + quoted(f.text) + ",\"kernel\":" + quoted(f.kernel) +
              ",\"source\":" + quoted(f.source) + ",\"source_line\":" + std::to_string(f.source_line) +
              ",\"ptx_line\":" + std::to_string(f.ptx_line) + ",\"instruction\":" + quoted(f.instruction) +
              ",\"block\":" + list(f.block, 3) + ",\"thread\":" + list(f.thread, 3) +
              ",\"count\":" + std::to_string(f.count) + "}";
  }
  answer += "]";
  return answer.c_str();
}

const char* simulator_launches() {
  answer = "[";
  for (const LaunchReport& r : machine().launches) {
    if (answer.size() > 1) answer += ",";
    answer += "{\"kernel\":" + quoted(r.kernel) + ",\"grid\":" + list(r.grid, 3) + ",\"block\":" + list(r.block, 3) +
              ",\"resident\":" + std::to_string(r.resident) + ",\"total\":" + list(r.total, kCounters) +
              ",\"busiest\":" + list(r.busiest, kCounters) + "}";
  }
  answer += "]";
  return answer.c_str();
}

const char* simulator_printed() {
  answer = std::exchange(machine().printed, {});
  return answer.c_str();
}

// Questions of the host about devices and kernels, since the last clear.
uint64_t simulator_queries() { return machine().queries; }

void simulator_clear() {
  machine().queries = 0;
  machine().findings.clear();
  machine().launches.clear();
}

const char* simulator_kernels() {
  answer = "[";
  for (const auto& [name, info] : machine().kernels) answer += (answer.size() > 1 ? "," : "") + quoted(name);
  answer += "]";
  return answer.c_str();
}

// Launches a kernel by its PTX name; `params` as the kernel lays them out. A cudaError_t, -1: no such kernel.
int simulator_launch(const char* name, const uint32_t* grid, const uint32_t* block, uint32_t dynamic_shared,
                     int cooperative, void** arguments) {
  const auto at = machine().kernels.find(name);
  if (at == machine().kernels.end()) return -1;
  const KernelInfo& kernel = at->second;
  std::vector<std::byte> params(kernel.param_bytes + 1);
  for (uint32_t i = 0; i < kernel.param_count; ++i)
    std::memcpy(&params[kernel.params[i].offset], arguments[i], kernel.params[i].bytes);
  return launch({&kernel,
                 {grid[0], grid[1], grid[2]},
                 {block[0], block[1], block[2]},
                 dynamic_shared,
                 cooperative != 0,
                 params.data()});
}

int simulator_param_bytes(const char* name, uint32_t* sizes, int room) {
  const auto at = machine().kernels.find(name);
  if (at == machine().kernels.end()) return -1;
  for (uint32_t i = 0; i < at->second.param_count && int(i) < room; ++i) sizes[i] = at->second.params[i].bytes;
  return at->second.param_count;
}

// Leading bytes of the range that something wrote.
uint64_t simulator_written(uint64_t address, uint64_t size) { return written_prefix(address, size); }

}  // extern "C"
