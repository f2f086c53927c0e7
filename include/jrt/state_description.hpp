// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/decode.hpp"
#include "jrt/state.hpp"
#include "jrt/state_exchange.hpp"
#include "jrt/state_operations.hpp"

namespace jrt {

/// A state's format at run time: for an engine's cache manager, which allocates and addresses slots without knowing the
/// operator's type. Names and numbers are those of saved states.
struct StateDescription {
  const char* name = "";          ///< of the feature map, or what else the state is: "taylor2/symmetric", "sliding window"
  const char* scalar = "";        ///< type of its values; two short names for a hybrid, "mixed" for a stack
  std::int64_t heads = 0;         ///< key/value heads, or channels; 1 for a stack
  std::int64_t input_dim = 0;     ///< d
  std::int64_t rows = 0;          ///< D; of a window L + 1; of a convolution K − 1; of a hybrid the sum of the first two
  std::int64_t columns = 0;       ///< dv
  std::size_t alignment = 0;      ///< of pools and of the distance between slots, in bytes
  std::size_t scalar_bytes = 0;   ///< of one element of a pool, the unit of `StatePoolView::slot_stride`
  std::int64_t head_bytes = 0;    ///< from one head to the next
  std::int64_t slot_bytes = 0;    ///< of a sequence's state: `heads` · `head_bytes`, constant in the number of tokens
  std::int64_t saved_bytes = 0;   ///< of one state as `save_states` writes it, header included
  std::int64_t staged_bytes = 0;  ///< of one staged token in all heads (`StagingView`); 0 for a stack
  bool mergeable = false;         ///< whether states are sums, which `merge_states` adds up
};

namespace detail {

/// A mixer's state format; a stack is its own.
template <class Config>
struct DescribedFormat {
  using type = StateFormatOf<Config>;
  static constexpr std::int64_t staged_elements = staged_row_elements<Config>;
  static constexpr std::size_t staged_scalar_bytes = sizeof(typename Config::Element);
};
template <class Config>
requires(saved_headers<Config> > 1) struct DescribedFormat<Config> {
  using type = Config;
  static constexpr std::int64_t staged_elements = 0;
  static constexpr std::size_t staged_scalar_bytes = 0;
};

}  // namespace detail

/// The state of `Config`, a mixer's configuration or a `Stack` (then of one head), with `heads` key/value heads or
/// channels. Where `heads` is not positive, or so large that a slot's bytes are no 63-bit number, all fields that depend on
/// it are 0.
template <class Config>
constexpr StateDescription describe_state(std::int64_t heads = 1) {
  using Described = detail::DescribedFormat<Config>;
  using Format = typename Described::type;
  using Scalar = typename Format::Scalar;
  StateDescription state;
  state.name = Format::name;
  state.scalar = detail::saved_scalar_name<Format>();
  state.input_dim = Format::input_dim;
  state.rows = Format::rows;
  state.columns = Format::columns;
  state.alignment = Format::alignment;
  state.scalar_bytes = sizeof(Scalar);
  state.head_bytes = Format::slot_bytes(1);
  state.mergeable = detail::is_sum<Format>;
  constexpr std::int64_t most = (INT64_MAX / 4) / Format::slot_bytes(1);  // a quarter: a token staged may be larger
  if (heads >= 1 && heads <= most) {
    state.heads = heads;
    state.slot_bytes = Format::slot_bytes(heads);
    state.saved_bytes = saved_states_bytes<Format>(1, heads);
    state.staged_bytes = heads * Described::staged_elements * static_cast<std::int64_t>(Described::staged_scalar_bytes);
  }
  return state;
}

}  // namespace jrt
