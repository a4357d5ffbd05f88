// Sectors and bank conflicts are properties of a warp's instruction, but lanes run one after another. So each lane
// writes down its accesses, and where the warp is together again the n-th accesses of one site form a request.
#pragma once

#include <cstdint>

#include "engine.h"

namespace sim {

inline constexpr int kCounters = static_cast<int>(Counter::count);

struct Access {
  const Site* site;
  uint64_t packed;  // address | log2(bytes) << 48 | kind << 56
};

enum class AccessKind : uint64_t { global_load, global_store, shared_load, shared_store };

void trace_access(Fiber&, const Site&, uint64_t address, int bytes, AccessKind);
void settle_traffic(Warp&);  // all lanes are at one point of the program
inline constexpr size_t kTraceLimit = 128;

}  // namespace sim
