// The memory stack of a thread, in blocks.
#include "cpu/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace fastrnn::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMostKept = 0;  // every buffer on its own, for the sanitizer to see its ends
#else
constexpr std::size_t kMostKept = std::size_t{64} << 20;
#endif

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void prefer_huge_pages(void* begin, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = round_up(address, kHugePage);
  const std::uintptr_t last = (address + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a refusal costs nothing
}

thread_local constinit MemoryStack* MemoryStack::instead = nullptr;

MemoryStack& MemoryStack::of_this_thread() {
  if (instead) return *instead;
  thread_local MemoryStack stack;
  return stack;
}

void* MemoryStack::push(std::size_t bytes) {
  if (blocks_.empty() || blocks_.back().used + bytes > blocks_.back().size) add_block(bytes);
  Block& block = blocks_.back();
  void* out = block.data.get() + block.used;
  block.used += bytes;
  in_use_ += bytes;
  most_ = std::max(most_, in_use_);
  return out;
}

void MemoryStack::pop(std::size_t bytes) {
  blocks_.back().used -= bytes;
  in_use_ -= bytes;
  if (blocks_.back().used == 0 && (blocks_.size() > 1 || blocks_.back().size > kMostKept)) blocks_.pop_back();
  if (in_use_ > 0) return;
  // One block of the call's whole size serves the next call, unless that is too much to keep.
  if (most_ > kMostKept) most_ = 0;
  if (!blocks_.empty() && blocks_.back().size < most_) blocks_.clear();
}

void MemoryStack::add_block(std::size_t bytes) {
  std::size_t size = std::max(bytes, most_ - in_use_);
  const std::size_t alignment = size < kHugePage ? kCacheLine : kHugePage;
  size = round_up(size, alignment);
  Block block{std::unique_ptr<char[], Free>(static_cast<char*>(std::aligned_alloc(alignment, size))), size, 0};
  if (!block.data) throw std::bad_alloc();
  prefer_huge_pages(block.data.get(), size);
  blocks_.push_back(std::move(block));
}

}  // namespace fastrnn::cpu
