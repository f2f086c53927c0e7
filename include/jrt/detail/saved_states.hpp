// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "jrt/numeric.hpp"
#include "jrt/state_exchange.hpp"
#include "jrt/status.hpp"

namespace jrt::detail {

template <std::size_t size>
void copy_name(char (&to)[size], const char* from) {
  std::memset(to, 0, size);
  for (std::size_t i = 0; i + 1 < size && from[i] != '\0'; ++i) {
    to[i] = from[i];
  }
}

template <class Format>
SavedStatesHeader saved_header(std::int64_t count, std::int64_t heads) {
  SavedStatesHeader header{};
  std::memcpy(header.magic, SavedStatesHeader::expected_magic, sizeof header.magic);
  header.byte_order = SavedStatesHeader::expected_byte_order;
  header.version = SavedStatesHeader::current_version;
  copy_name(header.scalar, element_name<typename Format::Scalar>());
  copy_name(header.feature_map, Format::name);
  header.input_dim = Format::input_dim;
  header.rows = Format::rows;
  header.columns = Format::columns;
  header.heads = heads;
  header.count = count;
  return header;
}

/// Whether `buffer` begins with `count` states of `Format` with `heads` heads.
template <class Format>
Status check_saved_states(std::span<const std::byte> buffer, std::int64_t count, std::int64_t heads) {
  const auto corrupt = [](const char* what, long long found, long long expected) {
    return Status::error(StatusCode::corrupt_data, "load_states: the saved %s is %lld, but must be %lld.", what, found,
                         expected);
  };
  const auto different = [](const char* what, const char* found, int room, const char* expected) {
    return Status::error(StatusCode::corrupt_data, "load_states: the saved %s is '%.*s', but must be '%s'.", what, room,
                         found, expected);
  };
  if (buffer.size() < sizeof(SavedStatesHeader)) {
    return corrupt("header's size in bytes", static_cast<long long>(buffer.size()), sizeof(SavedStatesHeader));
  }
  SavedStatesHeader found;
  std::memcpy(&found, buffer.data(), sizeof found);
  const SavedStatesHeader expected = saved_header<Format>(count, heads);
  if (std::memcmp(found.magic, expected.magic, sizeof found.magic) != 0) {
    return different("magic", "something else", 14, "JRTSTATE");
  }
  if (found.byte_order != expected.byte_order) {
    return corrupt("byte order mark", found.byte_order, expected.byte_order);
  }
  if (found.version != expected.version) {
    return corrupt("version", found.version, expected.version);
  }
  if (std::memcmp(found.scalar, expected.scalar, sizeof found.scalar) != 0) {
    return different("scalar type", found.scalar, sizeof found.scalar, expected.scalar);
  }
  if (std::memcmp(found.feature_map, expected.feature_map, sizeof found.feature_map) != 0) {
    return different("feature map", found.feature_map, sizeof found.feature_map, expected.feature_map);
  }
  const struct {
    const char* what;
    std::int64_t found;
    std::int64_t expected;
  } numbers[] = {{"input_dim", found.input_dim, expected.input_dim},
                 {"number of rows", found.rows, expected.rows},
                 {"number of columns", found.columns, expected.columns},
                 {"number of heads", found.heads, expected.heads},
                 {"number of states", found.count, expected.count}};
  for (const auto& number : numbers) {
    if (number.found != number.expected) {
      return corrupt(number.what, number.found, number.expected);
    }
  }
  const std::int64_t bytes = saved_states_bytes<Format>(count, heads);
  if (static_cast<std::int64_t>(buffer.size()) < bytes) {
    return corrupt("size in bytes", static_cast<long long>(buffer.size()), bytes);
  }
  return {};
}

/// Bytes of one head's numbers in saved bytes.
template <class Format>
inline constexpr std::size_t saved_head_bytes = static_cast<std::size_t>(Format::head_numbers) *
                                                sizeof(typename Format::Scalar);

}  // namespace jrt::detail
