// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/stored_tensor.hpp"

namespace support {

class MappedFile;

/// A file of named tensors, checked when it is opened and mapped into memory, so that only what is converted is read: what
/// SafeTensors and TorchFile have in common.
class TensorFile {
 public:
  TensorFile(TensorFile&&) noexcept;
  TensorFile& operator=(TensorFile&&) noexcept;
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;
  ~TensorFile();

  /// Its path, or its name in memory.
  [[nodiscard]] const std::string& path() const { return path_; }

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }
  /// Valid while the file lives, moved or not.
  [[nodiscard]] const StoredTensor& tensor(const std::string& name) const;
  /// Names of all tensors, sorted.
  [[nodiscard]] std::vector<std::string> names() const;

  /// The memory that a tensor's pages take is given back; they come again when they are looked at.
  void release(const StoredTensor& tensor) const;

 protected:
  /// A file that is mapped, or one in memory without a mapping.
  explicit TensorFile(std::string path, std::unique_ptr<MappedFile> file);

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, StoredTensor> tensors_{};
};

}  // namespace support
