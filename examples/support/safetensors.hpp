// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "support/tensor_file.hpp"

/// A reader of safetensors files that trusts nothing in them. Errors are std::runtime_error with the file, the tensor and
/// both values.
namespace support {

/// A safetensors file: its header is the strict JSON that the format wants, and the tensors cover its data without gap or
/// overlap.
class SafeTensors : public TensorFile {
 public:
  explicit SafeTensors(const std::string& path);
  /// The same for a file's bytes, which must outlive the object; `name` stands for the file in messages.
  static SafeTensors from_memory(std::string name, std::span<const std::byte> bytes);

  /// Metadata, as a whole number and as text.
  [[nodiscard]] std::int64_t number(const std::string& key) const;
  [[nodiscard]] const std::string& text(const std::string& key) const;

 private:
  SafeTensors(std::string name, std::span<const std::byte> bytes);
  void read(std::span<const std::byte> bytes);

  std::map<std::string, std::string> metadata_{};
};

}  // namespace support
