// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace support {

/// The entries of a zip archive that are stored as they are, as torch.save writes them: nothing is unpacked or copied. The
/// format is PKWARE's APPNOTE 6.3, with its 64-bit sizes (zip64); archives in several files, encrypted or compressed
/// entries are refused. What the central directory says is checked against the file's size and the headers before the
/// entries. Errors are std::runtime_error with the file, the entry and both values.
class ZipArchive {
 public:
  /// `bytes` must outlive the object; `name` stands for the file in messages.
  ZipArchive(const std::string& name, std::span<const std::byte> bytes);

  using Entries = std::map<std::string, std::span<const std::byte>, std::less<>>;
  /// Name and bytes of each entry.
  [[nodiscard]] const Entries& entries() const { return entries_; }
  /// Null if there is no such entry.
  [[nodiscard]] const std::span<const std::byte>* find(std::string_view name) const;

 private:
  Entries entries_{};
};

}  // namespace support
