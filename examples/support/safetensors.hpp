// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "support/stored_tensor.hpp"

/// A reader of safetensors files that trusts nothing in them. Errors are std::runtime_error with the file, the tensor and
/// both values.
namespace support {

class MappedFile;

/// A safetensors file, checked when it is opened: its header is the strict JSON that the format wants, and the tensors
/// cover its data without gap or overlap. The file is mapped into memory, so that only what is converted is read.
class SafeTensors {
 public:
  explicit SafeTensors(const std::string& path);
  /// The same for a file's bytes, which must outlive the object; `name` stands for the file in messages.
  static SafeTensors from_memory(std::string name, std::span<const std::byte> bytes);

  SafeTensors(SafeTensors&&) noexcept;
  SafeTensors& operator=(SafeTensors&&) noexcept;
  SafeTensors(const SafeTensors&) = delete;
  SafeTensors& operator=(const SafeTensors&) = delete;
  ~SafeTensors();

  /// Its path, or its name in memory.
  [[nodiscard]] const std::string& path() const { return path_; }

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }
  [[nodiscard]] const StoredTensor& tensor(const std::string& name) const;
  /// Names of all tensors, sorted.
  [[nodiscard]] std::vector<std::string> names() const;

  /// Metadata, as a whole number and as text.
  [[nodiscard]] std::int64_t number(const std::string& key) const;
  [[nodiscard]] const std::string& text(const std::string& key) const;

 private:
  SafeTensors(std::string name, std::span<const std::byte> bytes);
  void read(std::span<const std::byte> bytes);

  std::string path_;
  std::unique_ptr<MappedFile> file_{};
  std::map<std::string, std::string> metadata_{};
  std::map<std::string, StoredTensor> tensors_{};
};

}  // namespace support
