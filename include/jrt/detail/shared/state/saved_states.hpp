// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "jrt/detail/shared/state/saved_counts.hpp"
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
  copy_name(header.scalar, saved_scalar_name<Format>());
  copy_name(header.feature_map, Format::name);
  header.input_dim = Format::input_dim;
  header.rows = Format::rows;
  header.columns = Format::columns;
  header.heads = heads;
  header.count = count;
  return header;
}

template <class Format>
inline constexpr std::size_t saved_headers_bytes = static_cast<std::size_t>(saved_headers<Format>) *
                                                   sizeof(SavedStatesHeader);

/// All headers of states of `Format`: `function(index, header)` for each in turn.
template <class Format, class Function>
void for_saved_headers(std::int64_t count, std::int64_t heads, const Function& function) {
  function(0, saved_header<Format>(count, heads));
  if constexpr (saved_headers < Format >> 1) {
    Format::for_layers(
        [&]<class Layer>(int layer) { function(layer + 1, saved_header<typename Layer::Format>(count, Layer::heads)); });
  }
}

template <class Format>
void write_saved_headers(std::span<std::byte> buffer, std::int64_t count, std::int64_t heads) {
  for_saved_headers<Format>(count, heads, [&](int index, const SavedStatesHeader& header) {
    std::memcpy(buffer.data() + static_cast<std::size_t>(index) * sizeof header, &header, sizeof header);
  });
}

/// Whether the header found is the one expected. `part` names its owner in messages.
inline Status check_saved_header(const char* part, const SavedStatesHeader& found, const SavedStatesHeader& expected) {
  const auto corrupt = [&](const char* what, long long is, long long must) {
    return Status::error(StatusCode::corrupt_data, "load_states: %sthe saved %s is %lld, but must be %lld.", part, what, is,
                         must);
  };
  const auto different = [&](const char* what, const char* is, int room, const char* must) {
    return Status::error(StatusCode::corrupt_data, "load_states: %sthe saved %s is '%.*s', but must be '%s'.", part, what,
                         room, is, must);
  };
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
  return {};
}

/// Bytes of one head's values in saved states.
template <class Format>
inline constexpr std::size_t saved_head_bytes = static_cast<std::size_t>(Format::head_values) *
                                                sizeof(typename Format::Scalar);

/// Whether `buffer` begins with `count` states of `Format` with `heads` heads, whose token counts are legal.
template <class Format>
Status check_saved_states(std::span<const std::byte> buffer, std::int64_t count, std::int64_t heads) {
  const auto too_short = [&](const char* what, std::int64_t bytes) {
    return Status::error(StatusCode::corrupt_data, "load_states: the saved %s is %zu, but must be %lld.", what,
                         buffer.size(), static_cast<long long>(bytes));
  };
  Status status;
  for_saved_headers<Format>(count, heads, [&](int index, const SavedStatesHeader& expected) {
    const std::size_t begin = static_cast<std::size_t>(index) * sizeof expected;
    if (!status.ok()) {
      return;
    }
    if (buffer.size() < begin + sizeof expected) {
      status = too_short("header's size in bytes", static_cast<std::int64_t>(begin + sizeof expected));
      return;
    }
    SavedStatesHeader found;
    std::memcpy(&found, buffer.data() + begin, sizeof found);
    status = check_saved_header(index == 0 ? "" : LayerName(index - 1).c_str(), found, expected);
  });
  const std::size_t state_bytes = saved_head_bytes<Format> * static_cast<std::size_t>(heads);
  // By division: a caller's `count` may be untrusted, too, and products overflow.
  if (status.ok() && (buffer.size() - saved_headers_bytes<Format>) / state_bytes < static_cast<std::size_t>(count)) {
    const bool countable = static_cast<std::size_t>(count) < (INT64_MAX - saved_headers_bytes<Format>) / state_bytes;
    status = too_short("size in bytes", countable ? saved_states_bytes<Format>(count, heads) : INT64_MAX);
  }
  for (std::int64_t b = 0; status.ok() && b < count; ++b) {
    const std::byte* const state = buffer.data() + saved_headers_bytes<Format> + static_cast<std::size_t>(b) * state_bytes;
    status = check_state_counts<Format>(state, heads, b);
  }
  return status;
}

}  // namespace jrt::detail
