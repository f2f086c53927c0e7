// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "support/tensor_file.hpp"

namespace support {

/// A file of torch.save (PyTorch 1.6 and later) that holds a dictionary of tensors: a zip archive with a pickle that
/// describes the tensors and an entry for each storage. Nothing of the pickle is executed (pickled_tensors.hpp). Tensors
/// may be views of one storage: every offset, extent and stride is checked against the storage's bytes when the file is
/// opened. The older format, which is no archive, is refused by name.
class TorchFile : public TensorFile {
 public:
  explicit TorchFile(const std::string& path);
  /// The same for a file's bytes, which must outlive the object; `name` stands for the file in messages.
  static TorchFile from_memory(std::string name, std::span<const std::byte> bytes);

 private:
  TorchFile(std::string name, std::span<const std::byte> bytes);
  void read(std::span<const std::byte> bytes);
};

}  // namespace support
