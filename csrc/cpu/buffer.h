// Memory for one call. Its pages are kept for the next call: a fresh page costs more than the products written to it.
//
// Each thread has a stack of buffers. They are made on the thread that called the op and destroyed in the opposite
// order, as members and locals are.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

namespace fastrnn::cpu {

constexpr std::size_t kCacheLine = 64;

constexpr std::size_t in_whole_lines(std::size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

// Asks for huge pages for a range that is about to be touched for the first time.
void prefer_huge_pages(void* begin, std::size_t bytes);

// Uninitialised memory of at least so many bytes: whole cache lines or, where it is that long, huge pages.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes);

  char* get() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  std::size_t size_ = 0;
  std::unique_ptr<char[], Free> data_;
};

class MemoryStack {
 public:
  // What a call used is kept for the next one: all of it, or where this is false up to 64 MiB.
  explicit MemoryStack(bool keeps_all);

  static MemoryStack& of_this_thread();

  // This thread's buffers lie in another stack as long as this lives.
  class Instead {
   public:
    explicit Instead(MemoryStack& stack) : before_(std::exchange(instead, &stack)) {}
    Instead(const Instead&) = delete;
    ~Instead() { instead = before_; }

   private:
    MemoryStack* before_;
  };

  void* push(std::size_t bytes);
  void pop(std::size_t bytes);

 private:
  struct Block {
    Memory memory;
    std::size_t used = 0;
  };

  void add_block(std::size_t bytes);

  static thread_local constinit MemoryStack* instead;

  const std::size_t most_kept_;
  std::vector<Block> blocks_;
  std::size_t in_use_ = 0;
  std::size_t most_ = 0;  // that a call had in use at once
};

// Uninitialised memory, aligned to a cache line and rounded up to one.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : bytes_(in_whole_lines(size * sizeof(T))),
        data_(bytes_ > 0 ? static_cast<T*>(MemoryStack::of_this_thread().push(bytes_)) : nullptr) {}
  Buffer(Buffer&& other) noexcept
      : bytes_(std::exchange(other.bytes_, 0)), data_(std::exchange(other.data_, nullptr)) {}
  ~Buffer() {
    if (bytes_ > 0) MemoryStack::of_this_thread().pop(bytes_);
  }

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  std::size_t bytes_ = 0;
  T* data_ = nullptr;
};

}  // namespace fastrnn::cpu
