// SPDX-License-Identifier: Apache-2.0
// Page-aligned anonymous memory: zero, and costing nothing until a page is first touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
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
    mapped_ = bytes < kWorthHuge ? bytes : bytes + kHuge;
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    data_ = mapping_;
#if defined(MADV_HUGEPAGE)
    if (bytes >= kWorthHuge) {
      // Only whole ones count: what lies before the first is left out.
      std::size_t room = mapped_;
      std::align(kHuge, bytes, data_, room);
      madvise(data_, bytes, MADV_HUGEPAGE);  // a wish
    }
#endif
#endif
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory() {
#if defined(__SANITIZE_ADDRESS__)
    std::free(data_);
#else
    if (mapped_ != 0) munmap(mapping_, mapped_);
#endif
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{1} << 21;
  static constexpr std::size_t kWorthHuge = 2 * kHuge;

  void swap(Memory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_, other.mapped_);
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  void* mapping_ = nullptr;  // what is given back: data, and what lies around it
  std::size_t mapped_ = 0;
};

}  // namespace lilliput::engine
