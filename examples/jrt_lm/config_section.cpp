// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/config_section.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "support/strict_json.hpp"

namespace jrt_lm {

using nlohmann::json;

namespace {

/// 1e-06, 0.5 or 3: as people write it.
std::string shown(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? std::to_string(static_cast<std::int64_t>(value))
                                                              : json(value).dump();
}

}  // namespace

ConfigSection::ConfigSection(const json& object, std::string source, std::string path)
    : object_(&object), source_(std::move(source)), path_(std::move(path)) {
  if (!object.is_object()) {
    throw std::runtime_error(source_ + ": '" + path_ + "' is " + object.type_name() + ", but must be an object");
  }
}

void ConfigSection::fail(const std::string& key, const std::string& what) const {
  throw std::runtime_error(source_ + ": '" + (path_.empty() ? key : path_ + "." + key) + "' " + what);
}

bool ConfigSection::names(const char* key) const {
  return object_->contains(key);
}

bool ConfigSection::has(const char* key) const {
  const auto found = object_->find(key);
  return found != object_->end() && !found->is_null();
}

const json& ConfigSection::at(const char* key) const {
  if (!has(key)) {
    fail(key, "is missing");
  }
  return object_->at(key);
}

ConfigSection ConfigSection::section(const char* key) const {
  return {at(key), source_, path_.empty() ? key : path_ + "." + key};
}

std::int64_t ConfigSection::integer(const char* key, std::int64_t least, std::int64_t bound) const {
  const json& value = at(key);
  if (!value.is_number_integer() || value < least || value > bound) {
    fail(key, "is " + support::brief(value) + ", but must be an integer from " + std::to_string(least) + " to " +
                  std::to_string(bound));
  }
  return value.get<std::int64_t>();
}

std::int64_t ConfigSection::integer_or(const char* key, std::int64_t otherwise, std::int64_t least) const {
  return has(key) ? integer(key, least) : otherwise;
}

double ConfigSection::number_or(const char* key, double otherwise, double least, double bound) const {
  if (!has(key)) {
    return otherwise;
  }
  const json& value = at(key);
  // Both comparisons are false for NaN.
  if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= bound)) {
    fail(key, "is " + support::brief(value) + ", but must be a number from " + shown(least) + " to " + shown(bound));
  }
  return value.get<double>();
}

double ConfigSection::positive_or(const char* key, double otherwise) const {
  if (!has(key)) {
    return otherwise;
  }
  const json& value = at(key);
  if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
    fail(key, "is " + support::brief(value) + ", but must be a positive number");
  }
  return value.get<double>();
}

std::optional<bool> ConfigSection::flag(const char* key) const {
  if (!has(key)) {
    return std::nullopt;
  }
  if (!at(key).is_boolean()) {
    fail(key, "is " + support::brief(at(key)) + ", but must be true or false");
  }
  return at(key).get<bool>();
}

std::string ConfigSection::text(const char* key) const {
  if (!at(key).is_string()) {
    fail(key, "is " + support::brief(at(key)) + ", but must be a string");
  }
  return at(key).get<std::string>();
}

void ConfigSection::require(const char* key, const json& wanted) const {
  if (has(key) && !(at(key) == wanted)) {  // NaN is not equal, but the library does not call it unequal either
    fail(key, "is " + support::brief(at(key)) + ", but only " + support::brief(wanted) + " is supported");
  }
}

void ConfigSection::require_given(const char* key, const json& wanted, const char* otherwise) const {
  if (!has(key)) {
    fail(key,
         std::string("is missing, which means ") + otherwise + ", but only " + support::brief(wanted) + " is supported");
  }
  require(key, wanted);
}

}  // namespace jrt_lm
