#include "device.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace sim {

Device device_named(const std::string& architecture) {
  constexpr uint32_t K = 1024;
  constexpr uint64_t M = 1024 * 1024;
  static const Device devices[] = {
      {"sm_75", 7, 5, 40, 64 * K, 64 * K, 0, 1024, 16, 65536, 4 * M, 16 * K * M, 1590000},              // T4
      {"sm_80", 8, 0, 108, 163 * K, 164 * K, 1 * K, 2048, 32, 65536, 40 * M, 40 * K * M, 1410000},      // A100
      {"sm_86", 8, 6, 82, 99 * K, 100 * K, 1 * K, 1536, 16, 65536, 6 * M, 24 * K * M, 1695000},         // RTX 3090
      {"sm_89", 8, 9, 128, 99 * K, 100 * K, 1 * K, 1536, 24, 65536, 72 * M, 24 * K * M, 2520000},       // RTX 4090
      {"sm_90", 9, 0, 132, 227 * K, 228 * K, 1 * K, 2048, 32, 65536, 50 * M, 80 * K * M, 1755000},      // H100
      {"sm_100", 10, 0, 148, 227 * K, 228 * K, 1 * K, 2048, 32, 65536, 126 * M, 180 * K * M, 1965000},  // B200
      {"sm_120", 12, 0, 170, 99 * K, 100 * K, 1 * K, 1536, 24, 65536, 96 * M, 32 * K * M, 2407000},     // RTX 5090
  };
  for (const Device& device : devices)
    if (architecture == device.name) return device;
  throw std::invalid_argument("no device of architecture " + architecture);
}

int number_of(const Device& device) {
  static std::vector<Device> known{device_named("sm_90")};
  const auto at = std::find(known.begin(), known.end(), device);
  if (at != known.end()) return static_cast<int>(at - known.begin());
  known.push_back(device);
  return static_cast<int>(known.size()) - 1;
}

uint32_t blocks_per_sm(const Device& device, uint32_t threads, uint32_t registers, uint32_t shared_bytes) {
  const auto round_up = [](uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; };
  const uint32_t warps = (threads + 31) / 32;
  uint32_t blocks = std::min(device.blocks_per_sm, device.threads_per_sm / (warps * 32));
  // Registers are given to warps, 256 at a time, by each of an SM's four partitions out of its own quarter.
  const uint32_t warp_registers = round_up(std::max(registers, 1u) * 32, 256);
  blocks = std::min(blocks, device.registers_per_sm / 4 / warp_registers * 4 / warps);
  const uint32_t shared = round_up(shared_bytes + device.shared_reserved, 128);
  if (shared > 0) blocks = std::min(blocks, device.shared_per_sm / shared);
  return blocks;
}

}  // namespace sim
