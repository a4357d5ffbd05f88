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
  int ptx_version = 0;  // of the code it runs; 0: its own
};

Device device_named(const std::string& architecture);  // throws std::invalid_argument

// Blocks one SM holds; 0: not even one.
uint32_t blocks_per_sm(const Device&, uint32_t threads, uint32_t registers, uint32_t shared_bytes);

}  // namespace sim
