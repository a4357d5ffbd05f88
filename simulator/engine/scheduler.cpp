// The order in which warps run is drawn from the seed: a round visits the resident warps in random order, some of them
// lazily, so that they lag, and a visited warp runs its lanes until they wait, yield or end. Blocks become resident
// little by little, and all that the device holds only if those that run get no further without them. A lane that polls
// is parked until a store changes what it polls, or until nobody else gets on.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <numeric>

#include "fiber.h"
#include "machine.h"
#include "memory.h"

namespace sim {

Launch* current = nullptr;

Machine& machine() {
  static Machine* const instance = new Machine;
  return *instance;
}

namespace {

void fiber_main() {
  Fiber& f = *current->running;
  current->request.kernel->entry(f.thread);
  exit_thread(f.thread);
}

void suspend(Fiber& f) { sim_switch(&f.stack_pointer, current->scheduler); }

// How many backward branches a thread takes before others have their turn.
void grant_branches(Fiber& f, Launch& launch) {
  f.thread.branches_left = 256 + launch.random.below(2048);
  f.branches += f.thread.branches_left;
}

void forget_pollers(Launch& l) {
  for (const auto& [granule, fibers] : l.pollers)
    for (uint64_t i = granule * 16; i < granule * 16 + 16; ++i) states(i)[0] &= ~kPolled;
  l.pollers.clear();
}

class Run {
 public:
  explicit Run(Launch& launch) : l_(launch) {}

  void run() {
    order_.resize(l_.blocks);
    std::iota(order_.begin(), order_.end(), 0u);
    for (uint32_t i = l_.blocks; i > 1; --i) std::swap(order_[i - 1], order_[l_.random.below(i)]);
    busiest_.fill(0);
    total_.fill(0);
    uint32_t wanted = l_.request.cooperative ? l_.resident : 1u << l_.random.below(4);
    uint64_t idle_rounds = 0;
    while (!l_.aborted && (next_ < l_.started || !active_.empty())) {
      while (active_.size() < std::min(wanted, l_.resident) && next_ < l_.started) admit();
      const uint64_t before = l_.progress;
      l_.worked = false;
      round();
      l_.now_ns += machine().settings.round_ns;
      const bool all_visited = stalls_ >= kVisitAll;
      stalls_ = l_.progress == before ? stalls_ + 1 : 0;
      if (stalls_ == 0) {
        idle_rounds = 0;
        l_.branches = 0;
        continue;
      }
      if (!all_visited) continue;
      if (wanted < l_.resident && next_ < l_.started) {
        wanted *= 2;
        continue;
      }
      if (l_.branches > machine().settings.branch_limit) report_stuck("endless loop", "loops without any effect");
      if (!any_runnable()) report_stuck("deadlock", "waits, and no thread can run");
      if (!l_.worked && ++idle_rounds > machine().settings.idle_rounds)
        report_stuck("livelock", "polls for what nobody will write");
    }
    for (Block* block : active_) total(*block);
  }

  void fill(LaunchReport& report) const {
    std::copy(total_.begin(), total_.end(), report.total);
    std::copy(busiest_.begin(), busiest_.end(), report.busiest);
  }

 private:
  void admit() {
    const uint32_t linear = order_[next_++];
    if (free_.empty()) {
      blocks_.push_back(std::make_unique<Block>());
      Block& fresh = *blocks_.back();
      fresh.slot = blocks_.size() - 1;
      fresh.fibers = std::make_unique<Fiber[]>(l_.warps * 32);
      fresh.warps.resize(l_.warps);
      free_.push_back(&fresh);
    }
    Block& block = *free_.back();
    free_.pop_back();
    start(block, linear);
    active_.push_back(&block);
    for (Warp& warp : block.warps) warps_.push_back(&warp);
  }

  void start(Block& block, uint32_t linear) {
    const uint32_t* grid = l_.request.grid;
    const uint32_t* size = l_.request.block;
    block.linear = linear;
    block.index[0] = linear % grid[0];
    block.index[1] = linear / grid[0] % grid[1];
    block.index[2] = linear / grid[0] / grid[1];
    block.alive = l_.threads;
    std::fill(std::begin(block.counters), std::end(block.counters), 0);
    for (BarrierState& barrier : block.barriers) barrier = BarrierState{};
    const uint64_t shared = kShared + block.slot * kWindow;
    make_dead(shared, kWindow, 0);
    make_alive(shared, l_.shared_bytes);
    // What an earlier block did in this window is over, and what this one does begins here.
    const uint32_t born = race_state().tick++;
    const uint32_t local_stride = (l_.request.kernel->local_bytes + 15) / 16 * 16 + 64;
    for (uint32_t w = 0; w < l_.warps; ++w) {
      Warp& warp = block.warps[w];
      warp.block = &block;
      warp.number = w;
      warp.lanes = &block.fibers[w * 32];
      const uint32_t lanes = std::min(32u, l_.threads - w * 32);
      warp.alive = warp.runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
      static constexpr uint32_t kLaziness[] = {0, 0, 0, 8, 15};
      warp.parked = warp.skip = 0;
      warp.laziness = kLaziness[l_.random.below(std::size(kLaziness))];
      for (uint32_t lane = 0; lane < 32; ++lane) {
        Fiber& f = warp.lanes[lane];
        const uint32_t i = w * 32 + lane;
        f.wait = lane < lanes ? Wait::none : Wait::ended;
        f.yielded = false;
        f.stopped_at = nullptr;
        f.stores.clear();
        f.copies.clear();
        f.copy_group = 0;
        f.trace.clear();
        std::fill(std::begin(f.polls), std::end(f.polls), Fiber::Poll{});
        f.next_poll = 0;
        f.polled_at = 0;
        Thread& t = f.thread;
        t.instructions = 0;
        t.tid[0] = i % size[0], t.tid[1] = i / size[0] % size[1], t.tid[2] = i / size[0] / size[1];
        std::copy(size, size + 3, t.ntid);
        std::copy(block.index, block.index + 3, t.ctaid);
        std::copy(grid, grid + 3, t.nctaid);
        t.lane = lane;
        t.warp = w;
        t.params = bytes(l_.params);
        t.counters = block.counters;
        t.shared_base = shared;
        t.index = (linear * l_.warps + w) * 32 + lane;
        t.block = &block;
        t.group = &warp;
        t.fiber = &f;
        f.branches = f.converged_at = 0;
        grant_branches(f, l_);
        f.stack = block.slot * l_.warps * 32 + i;
        t.local_base = kLocal + f.stack * local_stride;
        if (l_.request.kernel->local_bytes > 0) make_alive(t.local_base, l_.request.kernel->local_bytes);
        start_thread_clock(f, born);
        if (lane < lanes) f.stack_pointer = fresh_context(f.stack, fiber_main);
      }
    }
    race_state().tick++;
  }

  void round() {
    if (stalls_ >= kVisitAll) forget_pollers(l_);  // all of them are asked, and those that go on polling say so again
    for (size_t i = warps_.size(); i > 1; --i) std::swap(warps_[i - 1], warps_[l_.random.below(i)]);
    for (size_t i = 0; i < warps_.size() && !l_.aborted; ++i) {
      Warp& warp = *warps_[i];
      if (warp.alive == 0) continue;
      if (stalls_ >= kVisitAll) {
        warp.parked = 0;
      } else if (warp.skip > 0) {
        --warp.skip;
        continue;
      }
      if (stalls_ == 0 && l_.random.below(16) < warp.laziness) continue;
      visit(warp);
    }
    if (l_.aborted) return;
    std::erase_if(warps_, [](const Warp* warp) { return warp->block->alive == 0; });
    for (size_t i = 0; i < active_.size();) {
      if (active_[i]->alive > 0) {
        ++i;
        continue;
      }
      total(*active_[i]);
      free_.push_back(active_[i]);
      active_.erase(active_.begin() + i);
    }
  }

  void visit(Warp& warp) {
    for (uint32_t lane = 0; lane < 32; ++lane) warp.lanes[lane].yielded = false;
    if ((warp.runnable & ~warp.parked) == 0) warp.parked = 0;  // its turn has come though nothing it polls changed
    uint32_t yielded = 0;
    const uint32_t first = l_.random.one_in(2) ? 0 : l_.random.below(32);
    for (uint32_t passes = 1 + l_.random.below(16); passes > 0; --passes) {
      if ((warp.runnable & ~warp.parked & ~yielded) == 0) break;
      for (uint32_t k = 0; k < 32; ++k) {
        const uint32_t lane = (first + k) % 32;
        if (!((warp.runnable & ~warp.parked & ~yielded) >> lane & 1)) continue;
        resume(warp.lanes[lane]);
        if (l_.aborted) return;
        if (warp.lanes[lane].yielded) yielded |= 1u << lane;
      }
    }
    if ((warp.runnable & ~warp.parked & ~yielded) == 0) answer_activemask(warp);
    if (warp.runnable != 0 && (warp.runnable & ~warp.parked) == 0) warp.skip = l_.random.below(64);
    // Whoever waits or polls lets its stores out one by one, so a store does not stay invisible for ever.
    for (uint32_t rest = warp.alive; rest != 0; rest &= rest - 1) {
      Fiber& f = warp.lanes[std::countr_zero(rest)];
      if (!f.stores.empty() && l_.random.one_in(2)) {
        drain_one_store(f);
        l_.worked = true;
      }
    }
  }

  void resume(Fiber& f) {
    l_.running = &f;
    sim_switch(&l_.scheduler, f.stack_pointer);
    l_.running = nullptr;
    if (stack_overflown(f.stack, f.stack_pointer)) {
      std::fprintf(stderr, "simulator: the stack of a fiber of %s overflows\n", l_.request.kernel->name);
      std::abort();
    }
  }

  bool any_runnable() const {
    for (const Warp* warp : warps_) {
      if (warp->runnable) return true;
      for (uint32_t lane = 0; lane < 32; ++lane)
        if (warp->lanes[lane].wait == Wait::activemask || !warp->lanes[lane].stores.empty()) return true;
    }
    return false;
  }

  void report_stuck(const char* kind, const char* what) {
    std::string text;
    const Fiber* culprit = nullptr;
    const Site* seen[4] = {};
    int places = 0;
    for (const Block* block : active_)
      for (uint32_t i = 0; i < l_.warps * 32 && places < 4; ++i) {
        const Fiber& f = block->fibers[i];
        if (f.wait == Wait::ended || std::find(seen, seen + places, f.stopped_at) != seen + places) continue;
        seen[places++] = f.stopped_at;
        if (!culprit) culprit = &f;
        if (!text.empty()) text += "; ";
        text += thread_name(f) + " " + (f.wait == Wait::none ? "runs" : "waits") +
                (f.stopped_at ? " at " + site_name(*f.stopped_at) : "");
      }
    if (next_ < l_.started)
      text += "; " + std::to_string(l_.started - next_) + " blocks are not resident: the device holds " +
              std::to_string(l_.resident);
    add_finding(kind, std::string(what) + ": " + text, culprit ? culprit->stopped_at : nullptr, culprit);
    l_.aborted = true;
    l_.error = 702;  // cudaErrorLaunchTimeout
  }

  void total(const Block& block) {
    for (int i = 0; i < kCounters; ++i) {
      total_[i] += block.counters[i];
      busiest_[i] = std::max(busiest_[i], block.counters[i]);
    }
  }

  Launch& l_;
  std::vector<uint32_t> order_;  // in which blocks become resident
  uint32_t next_ = 0;
  // Rounds that changed nothing: after one nobody may be lazy, after more even those who only poll are visited.
  uint32_t stalls_ = 0;
  static constexpr uint32_t kVisitAll = 3;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Block*> active_, free_;
  std::vector<Warp*> warps_;
  std::array<uint64_t, kCounters> total_, busiest_;
};

}  // namespace

void yield_to_scheduler(Fiber& f, const Site* where, bool idle) {
  f.yielded = true;
  f.stopped_at = where;
  if (!idle) current->worked = true;
  suspend(f);
}

void wait_here(Fiber& f, const Site& site, Wait wait) {
  f.wait = wait;
  f.stopped_at = &site;
  f.thread.group->runnable &= ~(1u << f.thread.lane);
  suspend(f);
}

void wake(Fiber& f) {
  f.wait = Wait::none;
  f.thread.group->runnable |= 1u << f.thread.lane;
}

void spend_branches(Thread& t) {
  grant_branches(*t.fiber, *current);
  current->branches += 1024;
  yield_to_scheduler(*t.fiber, t.fiber->stopped_at, false);
}

void nanosleep(Thread& t, uint32_t ns) {
  current->now_ns += ns / 32;  // many sleep at once
  yield_to_scheduler(*t.fiber, t.fiber->stopped_at, true);
}

void exit_thread(Thread& t) {
  Fiber& f = *t.fiber;
  drain_stores_slowly(f);
  finish_async_copies(f);
  f.wait = Wait::ended;
  Warp& warp = *t.group;
  warp.alive &= ~(1u << t.lane);
  warp.runnable &= ~(1u << t.lane);
  --t.block->alive;
  ++current->progress;
  if (warp.alive == 0) settle_traffic(warp);
  leave_meetings(f);
  suspend(f);
  __builtin_unreachable();
}

void abort_launch(Fiber& f, const Site& site, int error, const char* kind, const std::string& text) {
  add_finding(kind, text, &site, &f);
  current->aborted = true;
  current->error = error;
  suspend(*current->running);
  __builtin_unreachable();
}

void trap(Thread& t, const Site& site) { abort_launch(*t.fiber, site, 719, "trap", "the kernel trapped"); }
void fail(Thread& t, const Site& site, const char* what) { abort_launch(*t.fiber, site, 719, "failure", what); }
void print(Thread&, const char* text) { machine().printed += text; }

uint64_t globaltimer(Thread&) { return current->now_ns; }
uint64_t clock(Thread& t) { return current->now_ns * 2 + t.counters[0] % 4096; }
uint64_t random(Thread&) { return machine().settings.numeric_seed == 0 ? 0 : current->numeric.next(); }
bool perturbing(Thread&) { return machine().settings.numeric_seed != 0; }

uint32_t special(Thread& t, int which) {
  switch (which) {
    case kEnvreg1: return static_cast<uint32_t>(current->workspace >> 32);
    case kEnvreg2: return static_cast<uint32_t>(current->workspace);
    case kSmid: return t.block->slot % machine().device.sms;
    case kNsmid: return machine().device.sms;
    case kGridid: return static_cast<uint32_t>(machine().launch_count);
    case kWarpid: return t.warp;
    case kNwarpid: return machine().device.threads_per_sm / 32;
    case kDynamicSharedBytes: return current->request.dynamic_shared;
    case kTotalSharedBytes: return current->shared_bytes;
  }
  return 0;
}

std::string site_name(const Site& site) {
  std::string name;
  if (site.source) {
    const std::string path = site.source;
    name = path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(site.source_line) + ", ";
  }
  return name + "PTX line " + std::to_string(site.ptx_line) + " (" + (site.text ? site.text : "") + ")";
}

std::string thread_name(const Fiber& f) {
  const auto three = [](const uint32_t* v) {
    return "(" + std::to_string(v[0]) + ", " + std::to_string(v[1]) + ", " + std::to_string(v[2]) + ")";
  };
  return "block " + three(f.thread.ctaid) + " thread " + three(f.thread.tid);
}

void add_finding(const char* kind, const std::string& text, const Site* site, const Fiber* f) {
  constexpr size_t kLimit = 100;
  std::vector<Finding>& all = machine().findings;
  for (Finding& old : all)
    if (old.kind == kind && site && old.ptx_line == site->ptx_line && old.kernel == site->kernel) {
      ++old.count;
      return;
    }
  if (all.size() >= kLimit) return;
  Finding finding;
  finding.kind = kind;
  finding.text = text;
  finding.kernel = site ? site->kernel : current ? current->request.kernel->name : "";
  if (site) {
    finding.ptx_line = site->ptx_line;
    finding.source = site->source ? site->source : "";
    finding.source_line = site->source_line;
    finding.instruction = site->text ? site->text : "";
  }
  if (f) {
    std::copy(f->thread.ctaid, f->thread.ctaid + 3, finding.block);
    std::copy(f->thread.tid, f->thread.tid + 3, finding.thread);
  }
  all.push_back(std::move(finding));
}

int launch(const LaunchRequest& request) {
  Machine& m = machine();
  Launch l;
  l.request = request;
  const uint64_t blocks = uint64_t{request.grid[0]} * request.grid[1] * request.grid[2];
  const uint64_t threads = uint64_t{request.block[0]} * request.block[1] * request.block[2];
  if (blocks == 0 || threads == 0 || threads > 1024 || request.block[2] > 64 || request.grid[1] > 65535 ||
      request.grid[2] > 65535 || request.grid[0] > 0x7FFFFFFF)
    return 9;  // cudaErrorInvalidConfiguration
  const KernelInfo& kernel = *request.kernel;
  const auto opted = m.dynamic_shared_limit.find(kernel.name);
  const uint32_t dynamic_limit =
      opted != m.dynamic_shared_limit.end() ? opted->second : 48 * 1024 - kernel.static_shared_bytes;
  if (request.dynamic_shared > dynamic_limit) return 1;  // cudaErrorInvalidValue
  if (kernel.max_threads > 0 && threads > kernel.max_threads) return 1;
  l.blocks = l.started = blocks;
  if (request.cooperative) l.started -= std::min<uint64_t>(m.settings.lost_blocks, blocks);
  l.threads = threads;
  l.warps = (threads + 31) / 32;
  if (blocks * l.warps * 32 >= kThreadLimit) {
    add_finding("grid too large", "the simulator numbers at most 67 million threads", nullptr, nullptr);
    return 9;
  }
  l.shared_bytes = (kernel.static_shared_bytes + 15) / 16 * 16 + request.dynamic_shared;
  const uint32_t per_sm = blocks_per_sm(m.device, threads, registers_of(kernel), l.shared_bytes);
  if (per_sm == 0) return 701;  // cudaErrorLaunchOutOfResources
  l.resident = per_sm * m.device.sms;
  if (request.cooperative && blocks > l.resident) return 720;  // cudaErrorCooperativeLaunchTooLarge

  l.random = Random(m.settings.schedule_seed * 1000003 + m.launch_count);
  l.numeric = Random(m.settings.numeric_seed * 1000003 + m.launch_count + 7);
  ++m.launch_count;
  l.params = heap().allocate(std::max(kernel.param_bytes, 1u));
  std::memcpy(bytes(l.params), request.params, kernel.param_bytes);
  mark_written(l.params, std::max(kernel.param_bytes, 1u));
  l.workspace = heap().allocate(256);  // of cooperative groups' grid barrier
  std::memset(bytes(l.workspace), 0, 256);
  mark_written(l.workspace, 256);
  Launch* const outer = current;
  current = &l;
  start_launch_clock();
  Run run(l);
  run.run();
  end_launch_clock();
  forget_pollers(l);
  current = outer;
  heap().release(l.params);
  heap().release(l.workspace);
  LaunchReport report{kernel.name, {}, {}, l.resident, {}, {}};
  std::copy(request.grid, request.grid + 3, report.grid);
  std::copy(request.block, request.block + 3, report.block);
  run.fill(report);
  m.launches.push_back(std::move(report));
  return l.error;
}

uint32_t registers_of(const KernelInfo& kernel) {
  const auto at = machine().registers.find(kernel.name);
  if (at != machine().registers.end()) return at->second;
  return kernel.max_threads > 0 ? std::min(255u, machine().device.registers_per_sm / kernel.max_threads) : 32;
}

void register_kernel(const KernelInfo& info) {
  KernelInfo copy = info;
  ParamInfo* params = new ParamInfo[info.param_count + 1];  // modules may be unloaded, the table stays
  std::copy(info.params, info.params + info.param_count, params);
  copy.params = params;
  char* name = new char[std::strlen(info.name) + 1];
  std::strcpy(name, info.name);
  copy.name = name;
  machine().kernels[info.name] = copy;
}

uint64_t register_global(const char* name, uint64_t size, const void* init) {
  const uint64_t address = heap().allocate(size);
  if (init)
    std::memcpy(bytes(address), init, size);
  else
    std::memset(bytes(address), 0, size);
  mark_written(address, size);
  machine().globals[name] = {address, size};
  return address;
}

}  // namespace sim
