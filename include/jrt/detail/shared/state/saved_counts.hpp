// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "jrt/status.hpp"

/// The token counts of rings in saved states: the only values there that are not elements of sums, keys or values, but
/// determine where such elements are. They are untrusted input, and checked before they are copied to a pool.
namespace jrt::detail {

/// Byte offset of the token count in one head; negative where a format has none.
template <class Format>
constexpr std::int64_t count_byte() {
  if constexpr (requires { Format::count_offset; }) {
    return Format::count_offset * static_cast<std::int64_t>(sizeof(typename Format::Scalar));
  } else if constexpr (requires { typename Format::WindowFormat; }) {
    return Format::window_offset_bytes + count_byte<typename Format::WindowFormat>();
  } else {
    return -1;
  }
}

/// The largest legal count.
template <class Format>
constexpr std::int64_t max_tokens_of() {
  if constexpr (requires { Format::max_tokens; }) {
    return Format::max_tokens;
  } else {
    return Format::WindowFormat::max_tokens;
  }
}

/// Whether all heads of a mixer in state `state` have seen the same number of tokens, and no more than can be counted. The
/// heads are `head_bytes` apart from `bytes` on. `part` names the mixer in messages.
template <class Format>
Status check_token_counts(const char* part, const std::byte* bytes, std::int64_t head_bytes, std::int64_t heads,
                          std::int64_t state) {
  if constexpr (count_byte<Format>() >= 0) {
    constexpr std::int64_t most = max_tokens_of<Format>();
    std::int64_t first = 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      std::int64_t count = 0;
      std::memcpy(&count, bytes + (h * head_bytes + count_byte<Format>()), sizeof count);
      if (count < 0 || count > most) {
        return Status::error(
            StatusCode::corrupt_data,
            "load_states: %sthe saved number of tokens of state %lld, head %lld is %lld, but must be from 0 "
            "to %lld.",
            part, static_cast<long long>(state), static_cast<long long>(h), static_cast<long long>(count),
            static_cast<long long>(most));
      }
      first = h == 0 ? count : first;
      if (count != first) {
        return Status::error(StatusCode::corrupt_data,
                             "load_states: %sthe saved number of tokens of state %lld, head %lld is %lld, but that of its "
                             "head 0 is %lld.",
                             part, static_cast<long long>(state), static_cast<long long>(h), static_cast<long long>(count),
                             static_cast<long long>(first));
      }
    }
  }
  return {};
}

/// Prefix of messages about a layer of a stack.
class LayerName {
 public:
  explicit LayerName(int layer) { std::snprintf(text_, sizeof text_, "layer %d: ", layer); }
  [[nodiscard]] const char* c_str() const { return text_; }

 private:
  char text_[32];
};

/// The counts of one head of saved states, or of one whole state of a mixer alone. Layers of a stack may have seen
/// different numbers of tokens: an engine may run them one by one.
template <class Format>
Status check_state_counts(const std::byte* bytes, std::int64_t heads, std::int64_t state) {
  constexpr auto head_bytes = Format::head_values * static_cast<std::int64_t>(sizeof(typename Format::Scalar));
  Status status;
  if constexpr (requires { Format::layers; }) {
    for (std::int64_t h = 0; h < heads; ++h) {
      Format::for_layers([&]<class Layer>(int layer) {
        if (status.ok()) {
          status = check_token_counts<typename Layer::Format>(LayerName(layer).c_str(),
                                                              bytes + (h * head_bytes + Format::layer_offset(layer)),
                                                              Layer::Format::slot_bytes(1), Layer::heads, state);
        }
      });
    }
  } else {
    status = check_token_counts<Format>("", bytes, head_bytes, heads, state);
  }
  return status;
}

}  // namespace jrt::detail
