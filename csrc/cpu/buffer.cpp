// The memory stack of a thread, in blocks.
#include "cpu/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <new>

namespace fastrnn::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeeps = false;  // every buffer on its own, for the sanitizer to see its ends
#else
constexpr bool kKeeps = true;
#endif
constexpr std::size_t kSomeKept = std::size_t{64} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void prefer_huge_pages(void* begin, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = round_up(address, kHugePage);
  const std::uintptr_t last = (address + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a refusal costs nothing
}

Memory::Memory(std::size_t bytes) {
  const std::size_t alignment = bytes < kHugePage ? kCacheLine : kHugePage;
  size_ = round_up(std::max<std::size_t>(bytes, 1), alignment);
  data_.reset(static_cast<char*>(std::aligned_alloc(alignment, size_)));
  if (!data_) throw std::bad_alloc();
  prefer_huge_pages(data_.get(), size_);
}

thread_local constinit MemoryStack* MemoryStack::instead = nullptr;

MemoryStack::MemoryStack(bool keeps_all)
    : most_kept_(!kKeeps     ? 0
                 : keeps_all ? std::numeric_limits<std::size_t>::max()
                             : kSomeKept) {}

MemoryStack& MemoryStack::of_this_thread() {
  if (instead) return *instead;
  thread_local MemoryStack stack(false);
  return stack;
}

void* MemoryStack::push(std::size_t bytes) {
  if (blocks_.empty() || blocks_.back().used + bytes > blocks_.back().memory.size()) add_block(bytes);
  Block& block = blocks_.back();
  void* out = block.memory.get() + block.used;
  block.used += bytes;
  in_use_ += bytes;
  most_ = std::max(most_, in_use_);
  return out;
}

void MemoryStack::pop(std::size_t bytes) {
  blocks_.back().used -= bytes;
  in_use_ -= bytes;
  if (blocks_.back().used == 0 && (blocks_.size() > 1 || blocks_.back().memory.size() > most_kept_)) blocks_.pop_back();
  if (in_use_ > 0) return;
  // One block of the call's whole size serves the next call, unless that is too much to keep.
  if (most_ > most_kept_) most_ = 0;
  if (!blocks_.empty() && blocks_.back().memory.size() < most_) blocks_.clear();
}

void MemoryStack::add_block(std::size_t bytes) { blocks_.push_back({Memory(std::max(bytes, most_ - in_use_))}); }

}  // namespace fastrnn::cpu
