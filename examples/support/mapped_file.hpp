// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace support {

/// A whole file, read-only, in memory without being read: pages come in as they are looked at. Must not be shortened by
/// anyone meanwhile. Errors are std::runtime_error with the file and the system's reason; the few lines that Git LFS leaves
/// in the place of a large file are refused by that name.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  /// Stays where it is when the object is moved.
  [[nodiscard]] std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(begin_), size_}; }
  /// The pages that lie wholly in `part`, which is a part of bytes(), take no memory until they are looked at again.
  void release(std::span<const std::byte> part) const;
  [[nodiscard]] std::string_view text() const { return {static_cast<const char*>(begin_), size_}; }

 private:
  MappedFile() = default;

  void* begin_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace support
