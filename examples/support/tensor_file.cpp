// SPDX-License-Identifier: Apache-2.0
#include "support/tensor_file.hpp"

#include <stdexcept>

#include "support/mapped_file.hpp"
#include "support/strict_json.hpp"

namespace support {

TensorFile::TensorFile(std::string path, std::unique_ptr<MappedFile> file)
    : path_(std::move(path)), file_(std::move(file)) {}
TensorFile::TensorFile(TensorFile&&) noexcept = default;
TensorFile& TensorFile::operator=(TensorFile&&) noexcept = default;
TensorFile::~TensorFile() = default;

const StoredTensor& TensorFile::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw std::runtime_error(path_ + ": has no tensor " + in_quotes(name));
  }
  return found->second;
}

std::vector<std::string> TensorFile::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) {
    names.push_back(name);
  }
  return names;
}

void TensorFile::release(const StoredTensor& tensor) const {
  if (file_ != nullptr) {
    file_->release(tensor.bytes);
  }
}

}  // namespace support
