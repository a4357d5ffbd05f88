#include "counters.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "machine.h"

namespace sim {
namespace {

struct Request {
  AccessKind kind;
  int bytes;  // a lane's
  int lanes = 0;
  uint64_t addresses[32];
};

// A phase serves 128 bytes: all lanes at 4 bytes, half a warp at 8, a quarter at 16. Within it each bank gives one word
// a cycle, to all lanes that want that word.
void settle_shared(const Request& request, uint64_t* counters) {
  const int lanes_per_phase = request.bytes <= 4 ? 32 : 128 / request.bytes;
  uint64_t wavefronts = 0, phases = 0;
  for (int first = 0; first < request.lanes; first += lanes_per_phase) {
    uint64_t words[32][32];  // of each bank, the different ones
    uint8_t load[32] = {};
    uint8_t worst = 0;
    for (int i = first; i < std::min(first + lanes_per_phase, request.lanes); ++i)
      for (int b = 0; b < std::max(request.bytes, 4); b += 4) {
        const uint64_t word = (request.addresses[i] + b) / 4;
        uint64_t* const bank = words[word % 32];
        uint8_t& n = load[word % 32];
        if (std::find(bank, bank + n, word) != bank + n) continue;
        bank[n++] = word;
        worst = std::max(worst, n);
      }
    wavefronts += worst;
    ++phases;
  }
  counters[static_cast<int>(Counter::shared_requests)] += 1;
  counters[static_cast<int>(Counter::shared_wavefronts)] += wavefronts;
  counters[static_cast<int>(Counter::shared_conflicts)] += wavefronts - phases;
}

void settle(const Request& request, uint64_t* counters) {
  if (request.kind == AccessKind::shared_load || request.kind == AccessKind::shared_store)
    return settle_shared(request, counters);
  uint64_t sectors[32];
  for (int i = 0; i < request.lanes; ++i) sectors[i] = request.addresses[i] / 32;  // aligned: one sector each
  if (!std::is_sorted(sectors, sectors + request.lanes)) std::sort(sectors, sectors + request.lanes);
  const Counter which =
      request.kind == AccessKind::global_load ? Counter::global_load_sectors : Counter::global_store_sectors;
  counters[static_cast<int>(which)] += std::unique(sectors, sectors + request.lanes) - sectors;
  counters[static_cast<int>(Counter::global_requests)] += 1;
}

void add(Request& request, const Access& access) {
  request.kind = static_cast<AccessKind>(access.packed >> 56);
  request.bytes = 1 << (access.packed >> 48 & 15);
  request.addresses[request.lanes++] = access.packed & 0xFFFFFFFFFFFF;
}

}  // namespace

void trace_access(Fiber& f, const Site& site, uint64_t address, int bytes, AccessKind kind) {
  if (f.trace.size() >= kTraceLimit) {
    yield_to_scheduler(f, &site, false);  // the other lanes come as far, or wait for this one
    if (f.trace.size() >= kTraceLimit) settle_traffic(*f.thread.group);
  }
  f.trace.push_back({&site, address | uint64_t(std::countr_zero(unsigned(bytes))) << 48 | uint64_t(kind) << 56});
}

void settle_traffic(Warp& warp) {
  uint64_t* counters = warp.block->counters;
  Fiber* with_trace[32];
  int lanes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (!warp.lanes[lane].trace.empty()) with_trace[lanes++] = &warp.lanes[lane];
  if (lanes == 0) return;
  const std::vector<Access>& first = with_trace[0]->trace;
  bool uniform = true;
  for (int i = 1; i < lanes && uniform; ++i) {
    const std::vector<Access>& other = with_trace[i]->trace;
    uniform = std::equal(first.begin(), first.end(), other.begin(), other.end(),
                         [](const Access& a, const Access& b) { return a.site == b.site; });
  }
  if (uniform) {
    for (size_t k = 0; k < first.size(); ++k) {
      Request request;
      for (int i = 0; i < lanes; ++i) add(request, with_trace[i]->trace[k]);
      settle(request, counters);
    }
  } else {  // diverged: match by site and occurrence
    struct Place {
      const Site* site;
      size_t next;  // occurrence in the present lane
      std::vector<Request> requests;
    };
    std::vector<Place> places;
    for (int i = 0; i < lanes; ++i) {
      for (Place& place : places) place.next = 0;
      for (const Access& access : with_trace[i]->trace) {
        auto at = std::find_if(places.begin(), places.end(), [&](const Place& p) { return p.site == access.site; });
        if (at == places.end()) at = places.insert(at, {access.site, 0, {}});
        if (at->next == at->requests.size()) at->requests.emplace_back();
        add(at->requests[at->next++], access);
      }
    }
    for (const Place& place : places)
      for (const Request& request : place.requests) settle(request, counters);
  }
  for (int i = 0; i < lanes; ++i) with_trace[i]->trace.clear();
}

}  // namespace sim
