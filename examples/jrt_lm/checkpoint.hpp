// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "support/tensor_file.hpp"

namespace jrt_lm {

/// The tensors of a model's folder: those of the first of these files that is there, or of the files (shards) that it
/// lists: `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin`, `pytorch_model.bin.index.json`.
/// Everything is checked when it is opened: each shard is a valid file in the folder itself, and index and shards name the
/// same tensors, each once. Errors are std::runtime_error with the file, the tensor and both values.
///
/// Names are the authors' own: a leading `model.`, which their training puts before all, is dropped; tensors whose names
/// contain `metrics`, counters of that training, are passed over; and a table of embeddings that is also the last
/// projection has the embeddings' name, where it is stored as `lm_head.weight` alone.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder);

  [[nodiscard]] bool contains(const std::string& name) const { return places_.contains(name); }
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
  /// Gives back the memory of a tensor's part of its file, which is read again where it is needed again.
  void release(const std::string& name) const;

  static constexpr const char* embeddings = "transformer.embeddings.word_embeddings.weight";
  static constexpr const char* head = "lm_head.weight";

 private:
  /// Where a tensor lies: its file, and its name there.
  struct Place {
    std::size_t shard;
    std::string name;
  };

  void read_index(const std::string& folder);
  void add_shard(const std::string& path);
  void name_tensors();
  [[nodiscard]] const Place& place_of(const std::string& name) const;

  std::string source_{};  // the file that lists the tensors
  std::vector<support::TensorFile> shards_{};
  std::map<std::string, std::size_t> shard_of_{};  // by the names in the files
  std::map<std::string, Place> places_{};          // by the authors' names
};

}  // namespace jrt_lm
