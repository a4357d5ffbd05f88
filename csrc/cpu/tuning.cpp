// Reads the sizes of caches from the machine.
#include "cpu/tuning.h"

#include <unistd.h>

#include <algorithm>

namespace fastrnn::cpu {
namespace {

// Linux tells it; it may be 0, as on many Arm chips.
int64_t second_level_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

Tuning tuning_of(int64_t cache_bytes) {
  // Larger ones are shared by several cores, or made up by a virtual machine; no core of these days has less.
  constexpr int64_t kLeast = 256 << 10, kMost = 2 << 20;
  Tuning tuning;
  if (cache_bytes > 0) tuning.cache_bytes = std::clamp(cache_bytes, kLeast, kMost);
  return tuning;
}

const Tuning& tuning() {
  static const Tuning kTuning = tuning_of(second_level_cache_bytes());
  return kTuning;
}

}  // namespace fastrnn::cpu
