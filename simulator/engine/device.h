// Limits of the devices one may pretend to have, and the occupancy they allow.
#pragma once

#include <cstdint>
#include <string>

namespace sim {

struct Device {
  const char* name;
  int major, minor;
  int sms;
  uint32_t shared_per_block, shared_per_sm, shared_reserved;  // bytes; opt-in limit; taken by the system per block
  uint32_t threads_per_sm, blocks_per_sm;
  uint32_t registers_per_sm = 65536;
  uint64_t l2_bytes, memory_bytes;
  int clock_khz;
  int ptx_version = 0;        // of the code it runs; 0: its own
  int cooperative_error = 0;  // the cudaError_t of every cooperative launch; 0: it runs

  bool operator==(const Device&) const = default;
};

Device device_named(const std::string& architecture);  // throws std::invalid_argument

// What cudaGetDevice says: a device that differs in anything has another number, as the code under test may remember
// what a device of a number answered. 0 is an H100.
int number_of(const Device&);

// Blocks one SM holds; 0: not even one.
uint32_t blocks_per_sm(const Device&, uint32_t threads, uint32_t registers, uint32_t shared_bytes);

}  // namespace sim
