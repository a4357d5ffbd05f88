// The numbers that the kernels know of a machine, and where they come from.
//
// The size of a cache is read where results do not depend on it: how many input products are computed ahead, and how
// threads share a step. Backward chunks decide in which order gradients are summed, so their sizes are everywhere the
// same. Sizes of buffers on the stack stay constants beside their products (gemm.h).
#pragma once

#include <cstdint>

namespace fastrnn::cpu {

struct Tuning {
  int64_t cache_bytes = 1 << 20;  // the second-level cache of a core: 1 MiB, as AMD's Zen 4 and 5 have

  // A thread's share of a forward chunk. Its input products wait in one half of the cache; weights and states pass
  // through the other.
  int64_t forward_chunk_bytes() const { return cache_bytes / 2; }
  // Weights up to this size stay in the cache from step to step: all of it but 5 %, for a step's products and states.
  double near_bytes() const { return cache_bytes * (1e6 / (1 << 20)); }

  // Cycles of today's cores, as orders of magnitude. They choose among plans with the same results.
  double multiply = 0.5;   // a vector of weights with one row: two multiply-adds begin in a cycle
  double load_near = 1.3;  // a vector of weights from the second-level cache: 48 of at most 64 bytes a cycle
  double load_far = 8;     // or from beyond it: 8 bytes a cycle, 24 GB/s of a core at 3 GHz
  double latency = 4;      // a sum's next multiply-add begins so many cycles after its last
  double vector_bytes = 64;
  // A cache line moves to another core in 50 to 150 ns on chips with many. So a barrier of two threads is 1200 cycles:
  // two arrivals, and the phase moves to its writer and back to its reader.
  double line_move = 300;
  double line_read = 30;  // each further reader queues for a line that is shared already: 10 ns

  // Every forward chunk reads all weights of the input, and every backward chunk reads and writes all weight gradients,
  // which pays only for so many rows.
  static constexpr int64_t kLeastForwardRows = 64;
  static constexpr int64_t kLeastBackwardRows = 256;
  static constexpr int64_t kMaxChunkRows = 8192;
  static constexpr int64_t kBackwardChunkBytes = 1 << 20;  // fixed, for the order of sums
  // A chunk of a large team has so many rows a thread, which share the loads of the input's weights, and is summed in
  // parts.
  static constexpr int64_t kBackwardRowsOfAThread = 48;
  // The weight gradients of a group are read and written once a chunk, which pays only for so many steps.
  static constexpr int64_t kLeastStepsOfAGroup = 64;
};

// Returns the numbers of a machine whose cores have a second-level cache of so many bytes, 0 if that is unknown.
Tuning tuning_of(int64_t cache_bytes);

// Returns the numbers of this machine, which is asked once.
const Tuning& tuning();

}  // namespace fastrnn::cpu
