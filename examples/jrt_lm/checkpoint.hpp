// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "support/safetensors.hpp"

namespace jrt_lm {

/// The tensors of a model's folder: those of `model.safetensors`, or of the files (shards) that
/// `model.safetensors.index.json` lists. Everything is checked when it is opened: each shard is a valid file in the folder
/// itself, and index and shards name the same tensors, each once. Errors are std::runtime_error with the file, the tensor
/// and both values.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder);

  [[nodiscard]] bool contains(const std::string& name) const { return shard_of_.contains(name); }
  /// Valid while the Checkpoint lives, moved or not.
  [[nodiscard]] const support::StoredTensor& tensor(const std::string& name) const;
  /// The same, if it has that shape.
  [[nodiscard]] const support::StoredTensor& tensor(const std::string& name, std::span<const std::int64_t> shape) const;
  [[nodiscard]] const support::StoredTensor& tensor(const std::string& name,
                                                    std::initializer_list<std::int64_t> shape) const {
    return tensor(name, std::span<const std::int64_t>(shape.begin(), shape.size()));
  }
  /// Names of all tensors, sorted.
  [[nodiscard]] std::vector<std::string> names() const;
  /// Path of the file that holds the tensor.
  [[nodiscard]] const std::string& where(const std::string& name) const;

 private:
  void read_index(const std::string& folder);
  void add_shard(const std::string& path);
  [[nodiscard]] const support::SafeTensors& shard_of(const std::string& name) const;

  std::string source_{};  // the file that lists the tensors
  std::vector<support::SafeTensors> shards_{};
  std::map<std::string, std::size_t> shard_of_{};
};

}  // namespace jrt_lm
