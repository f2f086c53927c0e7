// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

/// A reader for small safetensors files, for examples and tests: the whole file in memory, every tensor checked against its
/// size. Errors are std::runtime_error with the file, the tensor and both values.
namespace support {

struct StoredTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<char> bytes;

  [[nodiscard]] std::int64_t size() const {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) {
      size *= extent;
    }
    return size;
  }

  /// The numbers, converted to `To`. F32, F64 and I64 are what the golden files hold.
  template <class To>
  [[nodiscard]] std::vector<To> as() const {
    if (dtype == "F32") {
      return converted<float, To>();
    }
    return dtype == "F64" ? converted<double, To>() : converted<std::int64_t, To>();
  }

 private:
  template <class From, class To>
  [[nodiscard]] std::vector<To> converted() const {
    std::vector<From> raw(bytes.size() / sizeof(From));
    if (!raw.empty()) {
      std::memcpy(raw.data(), bytes.data(), raw.size() * sizeof(From));
    }
    std::vector<To> numbers;
    numbers.reserve(raw.size());
    for (const From number : raw) {
      numbers.push_back(static_cast<To>(number));
    }
    return numbers;
  }
};

class SafeTensors {
 public:
  explicit SafeTensors(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      fail("cannot be opened");
    }
    const std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    std::uint64_t header_bytes = 0;
    if (content.size() < sizeof header_bytes) {
      fail("has " + std::to_string(content.size()) + " bytes, too few for a header");
    }
    std::memcpy(&header_bytes, content.data(), sizeof header_bytes);
    if (header_bytes > content.size() - sizeof header_bytes) {
      fail("has a header of " + std::to_string(header_bytes) + " bytes, but only " +
           std::to_string(content.size() - sizeof header_bytes) + " bytes follow");
    }
    const auto header = nlohmann::json::parse(content.substr(sizeof header_bytes, header_bytes));
    const std::string data = content.substr(sizeof header_bytes + header_bytes);
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") {
        metadata_ = entry.get<std::map<std::string, std::string>>();
      } else {
        add(name, entry, data);
      }
    }
  }

  [[nodiscard]] bool contains(const std::string& name) const { return tensors_.contains(name); }

  [[nodiscard]] const StoredTensor& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      fail("has no tensor '" + name + "'");
    }
    return found->second;
  }

  [[nodiscard]] std::int64_t number(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found == metadata_.end()) {
      fail("has no metadata '" + key + "'");
    }
    return std::stoll(found->second);
  }

 private:
  void add(const std::string& name, const nlohmann::json& entry, const std::string& data) {
    StoredTensor tensor{entry.at("dtype").get<std::string>(), entry.at("shape").get<std::vector<std::int64_t>>(), {}};
    const auto begin = entry.at("data_offsets").at(0).get<std::uint64_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::uint64_t>();
    if (begin > end || end > data.size()) {
      fail("tensor '" + name + "' lies at " + std::to_string(begin) + " to " + std::to_string(end) + ", but there are " +
           std::to_string(data.size()) + " bytes of data");
    }
    const std::uint64_t width = tensor.dtype == "F32" ? 4 : tensor.dtype == "F64" || tensor.dtype == "I64" ? 8 : 0;
    if (width == 0) {
      fail("tensor '" + name + "' has the unsupported dtype " + tensor.dtype);
    }
    if (static_cast<std::uint64_t>(tensor.size()) * width != end - begin) {
      fail("tensor '" + name + "' has " + std::to_string(end - begin) + " bytes, but its shape needs " +
           std::to_string(static_cast<std::uint64_t>(tensor.size()) * width));
    }
    tensor.bytes.assign(data.begin() + static_cast<std::ptrdiff_t>(begin), data.begin() + static_cast<std::ptrdiff_t>(end));
    tensors_.emplace(name, std::move(tensor));
  }

  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

  std::string path_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace support
