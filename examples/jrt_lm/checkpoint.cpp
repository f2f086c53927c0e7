// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/checkpoint.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support/mapped_file.hpp"
#include "support/safetensors.hpp"
#include "support/strict_json.hpp"
#include "support/torch_file.hpp"

namespace jrt_lm {

namespace {

using support::in_quotes;

/// A name that cannot lead out of the folder.
bool is_plain_file_name(const std::string& name) {
  const bool has_separator =
      std::any_of(name.begin(), name.end(), [](char c) { return c == '/' || c == '\\' || c == '\0'; });
  return !name.empty() && !has_separator && name != "." && name.find("..") == std::string::npos;
}

/// File name of each tensor's shard.
std::map<std::string, std::string> read_weight_map(const std::string& path) {
  const support::MappedFile file(path);
  const auto index = support::parse_python_json(path + ": the index", file.text());
  const auto weight_map = index.is_object() ? index.find("weight_map") : index.end();
  if (weight_map == index.end() || !weight_map->is_object()) {
    throw std::runtime_error(path + ": has no object weight_map");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : weight_map->items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get_ref<const std::string&>())) {
      throw std::runtime_error(path + ": tensor " + in_quotes(tensor) + " lies in " + support::brief(shard) +
                               ", which is not the name of a file in the same folder");
    }
    shards.emplace(tensor, shard.get<std::string>());
  }
  return shards;
}

}  // namespace

Checkpoint::Checkpoint(const std::string& folder) {
  for (const char* const name : {"model.safetensors", "pytorch_model.bin"}) {
    const std::string single = folder + "/" + name;
    const std::string index = single + ".index.json";
    if (std::filesystem::exists(single)) {
      source_ = single;
      add_shard(single);
      break;
    }
    if (std::filesystem::exists(index)) {
      source_ = index;
      read_index(folder);
      break;
    }
  }
  if (source_.empty()) {
    throw std::runtime_error(folder +
                             ": has neither model.safetensors nor pytorch_model.bin, nor an index of shards "
                             "(model.safetensors.index.json, pytorch_model.bin.index.json)");
  }
  name_tensors();
}

void Checkpoint::read_index(const std::string& folder) {
  const std::string inside = folder + "/";
  const auto weight_map = read_weight_map(source_);
  std::map<std::string, std::size_t> shards;
  for (const auto& [tensor, file] : weight_map) {
    const auto [shard, is_new] = shards.emplace(file, shards_.size());
    if (is_new) {
      add_shard(inside + file);
    }
    if (const support::TensorFile& promised = shards_[shard->second]; !promised.contains(tensor)) {
      throw std::runtime_error(promised.path() + ": has no tensor " + in_quotes(tensor) + ", but " + source_ +
                               " says that it has");
    }
  }
  for (const auto& [tensor, shard] : shard_of_) {
    if (!weight_map.contains(tensor)) {
      throw std::runtime_error(shards_[shard].path() + ": has the tensor " + in_quotes(tensor) + ", which " + source_ +
                               " does not list");
    }
  }
}

void Checkpoint::add_shard(const std::string& path) {
  if (path.ends_with(".safetensors")) {
    shards_.push_back(support::SafeTensors(path));
  } else {
    shards_.push_back(support::TorchFile(path));
  }
  for (const std::string& name : shards_.back().names()) {
    const auto [place, is_new] = shard_of_.emplace(name, shards_.size() - 1);
    if (!is_new) {
      throw std::runtime_error(path + ": has the tensor " + in_quotes(name) + ", but so has " +
                               shards_[place->second].path());
    }
  }
}

void Checkpoint::name_tensors() {
  constexpr std::string_view prefix = "model.";
  for (const auto& [name, shard] : shard_of_) {
    if (name.find("metrics") != std::string::npos) {
      continue;
    }
    const auto [place, is_new] =
        places_.emplace(name.starts_with(prefix) ? name.substr(prefix.size()) : name, Place{shard, name});
    if (!is_new) {
      throw std::runtime_error(shards_[shard].path() + ": has the tensor " + in_quotes(name) + ", but " +
                               shards_[place->second.shard].path() + " has " + in_quotes(place->second.name) +
                               ", which means the same");
    }
  }
  if (const auto tied = places_.find(head); tied != places_.end() && !places_.contains(embeddings)) {
    auto table = places_.extract(tied);
    table.key() = embeddings;
    places_.insert(std::move(table));
  }
}

const Checkpoint::Place& Checkpoint::place_of(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    throw std::runtime_error(source_ + ": has no tensor " + in_quotes(name));
  }
  return found->second;
}

const support::StoredTensor& Checkpoint::tensor(const std::string& name) const {
  const Place& place = place_of(name);
  return shards_[place.shard].tensor(place.name);
}

const support::StoredTensor& Checkpoint::tensor(const std::string& name, std::span<const std::int64_t> shape) const {
  const support::StoredTensor& found = tensor(name);
  if (!std::equal(shape.begin(), shape.end(), found.shape.begin(), found.shape.end())) {
    throw std::runtime_error(found.origin + " has the shape " + support::shape_text(found.shape) + ", but must have " +
                             support::shape_text(shape));
  }
  return found;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(places_.size());
  for (const auto& [name, place] : places_) {
    names.push_back(name);
  }
  return names;
}

const std::string& Checkpoint::where(const std::string& name) const {
  return shards_[place_of(name).shard].path();
}

void Checkpoint::release(const std::string& name) const {
  const Place& place = place_of(name);
  shards_[place.shard].release(shards_[place.shard].tensor(place.name));
}

}  // namespace jrt_lm
