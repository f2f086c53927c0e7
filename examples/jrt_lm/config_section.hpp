// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace jrt_lm {

/// One object of a configuration file, with its path for messages. A key whose value is null counts as left out, as it does
/// in the authors' code. Errors are std::runtime_error: one line naming the file, the key and both values.
class ConfigSection {
 public:
  /// No extent of a model is larger, so that no count of numbers overflows.
  static constexpr std::int64_t most = std::int64_t{1} << 24;

  /// A view of `object`, which must outlive it.
  ConfigSection(const nlohmann::json& object, std::string source, std::string path);

  [[noreturn]] void fail(const std::string& key, const std::string& what) const;

  [[nodiscard]] bool has(const char* key) const;
  /// Whether the key stands there, be it with null.
  [[nodiscard]] bool names(const char* key) const;
  [[nodiscard]] const nlohmann::json& at(const char* key) const;
  [[nodiscard]] ConfigSection section(const char* key) const;

  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t least, std::int64_t bound = most) const;
  [[nodiscard]] std::int64_t integer_or(const char* key, std::int64_t otherwise, std::int64_t least) const;
  /// A number from `least` to `bound`.
  [[nodiscard]] double number_or(const char* key, double otherwise, double least, double bound) const;
  [[nodiscard]] double positive_or(const char* key, double otherwise) const;
  [[nodiscard]] std::optional<bool> flag(const char* key) const;
  [[nodiscard]] std::string text(const char* key) const;

  /// The key has this value, which it also has where it is left out.
  void require(const char* key, const nlohmann::json& wanted) const;
  /// The key has this value; left out, it would have another.
  void require_given(const char* key, const nlohmann::json& wanted, const char* otherwise) const;

 private:
  const nlohmann::json* object_;
  std::string source_;
  std::string path_;
};

}  // namespace jrt_lm
