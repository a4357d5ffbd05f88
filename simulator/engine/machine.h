// The engine's own structures: what a launch, a block, a warp and a thread are while they run.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "counters.h"
#include "device.h"
#include "engine.h"
#include "races.h"

namespace sim {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) {
    if (state_ == 0) state_ = 1;
    for (int i = 0; i < 4; ++i) next();
  }
  uint64_t next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1D;
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
  bool one_in(uint32_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

struct Settings {
  uint64_t schedule_seed = 0, numeric_seed = 0;
  bool races = true;
  bool store_buffer = true;
  bool traffic = true;                    // sectors and bank conflicts
  uint64_t round_ns = 100;                // what %globaltimer gains in a scheduling round
  uint64_t idle_rounds = 200;             // nothing but polling for so long is a livelock
  uint64_t branch_limit = 1'000'000'000;  // backward branches without progress
  uint64_t lost_blocks = 0;               // of a cooperative launch, that never start
};

struct Finding {
  std::string kind, text;  // text: a sentence with numbers
  std::string kernel, source, instruction;
  int ptx_line = 0, source_line = 0;
  uint32_t block[3] = {}, thread[3] = {};
  int count = 1;  // of the same kind at the same instruction
};

enum class Wait : uint8_t { none, barrier, collective, activemask, ended };

struct BufferedStore {
  const Site* site;
  uint64_t address;
  uint8_t bytes;
  bool strong;
  std::byte data[16];
};

struct AsyncCopy {
  const Site* site;
  uint64_t target, source;
  int bytes, source_bytes;
  bool committed;
  uint32_t group;
};

struct Fiber {
  Thread thread;
  void* stack_pointer;
  size_t stack;  // number of it
  Wait wait;
  bool yielded;            // in this visit of its warp
  const Site* stopped_at;  // where it waits or last yielded

  // The collective or barrier it waits in.
  int kind;  // or the barrier's id
  uint32_t mask;
  bool aligned;
  void* operands;
  void* compute;
  CollectiveBody body;
  bool predicate;
  uint32_t answer;

  struct Poll {
    uint64_t address, value;
  } polls[16];
  uint32_t next_poll;
  uint64_t polled_at;               // thread.instructions at the latest strong load
  uint64_t branches, converged_at;  // backward ones at the end of the present budget, and when its warp last met
  ThreadClock clock;
  std::vector<BufferedStore> stores;
  std::vector<AsyncCopy> copies;
  uint32_t copy_group;
  std::vector<Access> trace;
};

struct Warp {
  Block* block;
  uint32_t number;  // in the block
  uint32_t alive, runnable;
  uint32_t laziness;  // of 16 visits it skips so many: some warps lag far behind others
  uint32_t parked;    // of the runnable lanes those that poll, as long as what they poll has not changed
  uint32_t skip;      // visits to leave out, since all its lanes are parked
  Fiber* lanes;       // 32, those beyond the block's threads ended from the start
};

struct BarrierState {
  std::vector<Fiber*> waiting;
  std::vector<Fiber*> arrived;  // without waiting; may be twice in it
  int count = 0;                // expected; 0: nobody is here
  int reduce = -1;              // operation, -1: none
};

struct Block {
  uint32_t slot;
  uint32_t index[3], linear;
  uint32_t alive;
  std::vector<Warp> warps;
  std::unique_ptr<Fiber[]> fibers;
  BarrierState barriers[16];
  uint64_t counters[kCounters];
};

struct LaunchRequest {
  const KernelInfo* kernel;
  uint32_t grid[3], block[3];
  uint32_t dynamic_shared;
  bool cooperative;
  const std::byte* params;
};

struct Launch {
  LaunchRequest request;
  uint32_t threads, warps, blocks;  // a block's threads and warps; the grid's blocks
  uint32_t started;                 // of the blocks
  uint64_t params, workspace;       // device addresses
  uint32_t shared_bytes, resident;
  Random random;          // of the schedule
  Random numeric;         // of the perturbations
  uint64_t progress = 0;  // values changed, threads met or ended
  bool worked = false;    // somebody's yield in this round was not a poll
  bool aborted = false;
  int error = 0;          // cudaError_t of the abort
  uint64_t branches = 0;  // backward ones since the last progress
  uint64_t now_ns = 0;
  uint64_t instructions_clock = 0;
  std::unordered_map<uint64_t, std::vector<Fiber*>> pollers;  // by address / 16
  void* scheduler = nullptr;                                  // its saved stack pointer
  Fiber* running = nullptr;
};

struct LaunchReport {
  std::string kernel;
  uint32_t grid[3], block[3];
  uint32_t resident;
  uint64_t total[kCounters], busiest[kCounters];
};

struct Machine {
  Settings settings;
  Device device = device_named("sm_90");
  std::vector<Finding> findings;
  std::vector<LaunchReport> launches;
  std::string printed;
  std::unordered_map<std::string, KernelInfo> kernels;
  std::unordered_map<std::string, std::pair<uint64_t, uint64_t>> globals;  // address, bytes
  std::unordered_map<std::string, uint32_t> registers;                     // ptxas' answers
  std::unordered_map<std::string, uint32_t> dynamic_shared_limit;          // cudaFuncSetAttribute's
  uint64_t launch_count = 0;
  uint64_t queries = 0;                                           // of the host, about devices and kernels
  std::function<void(const std::string& kernel)> provide_kernel;  // loads the module of a kernel that is missing
};
Machine& machine();
extern Launch* current;  // the one that runs

// Registers a thread takes: what set_registers said that ptxas counted, or as many as the launch bounds allow.
uint32_t registers_of(const KernelInfo&);

// Runs it to its end; a cudaError_t.
int launch(const LaunchRequest&);

void add_finding(const char* kind, const std::string& text, const Site*, const Fiber*);
// A finding after which the launch cannot go on. Never returns.
[[noreturn]] void abort_launch(Fiber&, const Site&, int error, const char* kind, const std::string& text);

void yield_to_scheduler(Fiber&, const Site* where, bool idle);
void wait_here(Fiber&, const Site&, Wait);  // returns once wake() was called
void wake(Fiber&);

void answer_activemask(Warp&);
void leave_meetings(Fiber&);  // a thread has ended: those who waited for it may go on
std::string thread_name(const Fiber&);
std::string site_name(const Site&);

}  // namespace sim
