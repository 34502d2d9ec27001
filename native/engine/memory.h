// SPDX-License-Identifier: Apache-2.0
// Page-aligned anonymous memory: zero, and costing nothing until a page is first touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace lilliput::engine {

class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
#if defined(__SANITIZE_ADDRESS__)
    const std::size_t lines = (bytes + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, lines);  // with guarded ends, which mapped pages lack
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, lines);
#else
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (bytes >= kHuge) madvise(data_, bytes, MADV_HUGEPAGE);  // a wish
#endif
#endif
  }
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
#if defined(__SANITIZE_ADDRESS__)
    std::free(data_);
#else
    if (bytes_ != 0) munmap(data_, bytes_);
#endif
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{1} << 22;

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace lilliput::engine
