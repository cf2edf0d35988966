// A growing array on cache-line boundaries, for scratch that vector kernels and threads share.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <type_traits>

namespace ktd {

inline constexpr std::size_t kCacheLine = 64;

// What a large array is aligned to, and rounded up to, so that the kernel can back it with huge
// pages: a prefill touches its scratch in small pieces all over, each of which would otherwise need
// an address translation of its own.
inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Owns `size()` uninitialised elements; data() is 64-byte aligned, or null while empty.
template <class T>
class AlignedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  AlignedArray() = default;
  ~AlignedArray() { std::free(data_); }
  AlignedArray(const AlignedArray&) = delete;
  AlignedArray& operator=(const AlignedArray&) = delete;

  // Makes room for `size` elements; the contents are lost when it grows. Throws std::bad_alloc.
  void Reserve(std::size_t size) {
    if (size <= size_) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    const std::size_t wanted = size * sizeof(T);
    const std::size_t unit = wanted >= kHugePage / 2 ? kHugePage : kCacheLine;
    const std::size_t bytes = (wanted + unit - 1) / unit * unit;
    data_ = static_cast<T*>(std::aligned_alloc(unit, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    // A refusal costs speed only.
    if (unit == kHugePage) static_cast<void>(madvise(data_, bytes, MADV_HUGEPAGE));
    size_ = size;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace ktd
