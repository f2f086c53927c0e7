// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/launch.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/backward_layout.cuh"
#include "jrt/detail/cuda/window/backward_rows.cuh"
#include "jrt/detail/cuda/window/backward_tiles.cuh"
#include "jrt/detail/plan/sequence_runs.hpp"
#include "jrt/detail/shared/window/backward_call.hpp"
#include "jrt/kernels.hpp"
#include "jrt/status.hpp"
#include "jrt/workspace.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// The backward pass of window attention: a kernel for gradients of queries, then one for those of keys and values. The
/// workspace holds the row sums that the first leaves for the second.
template <WindowConfig Config>
class WindowBackward {
 public:
  using Call = WindowBackwardCall<Config>;
  using Element = typename Config::Element;
  using RowSums = WindowRowSums<ComputeType<Element>>;

  explicit WindowBackward(const Call& call) : call_(call) {}

  void take(Arena& arena) { row_sums_ = arena.take<RowSums>(call_.query.batch * call_.query.tokens * call_.query.heads); }

  [[nodiscard]] KernelKinds kernels() const {
    return on_tiles() ? KernelKinds{.matrix_units = true} : KernelKinds{.ordinary_units = true};
  }

  Status run(const Cuda& on) const {
    const bool wants_keys = call_.wants_key() || call_.wants_value();
    if (!wants_keys && !call_.wants_query()) {
      return {};
    }
    if constexpr (WindowBackwardLayout<Config>::supported) {
      if (on_tiles()) {
        using Layout = WindowBackwardLayout<Config>;
        const std::int64_t runs = runs_of(Layout::tile);
        const Grid queries{runs * call_.query.heads, Layout::threads, Layout::shared_bytes};
        const Grid keys{runs * call_.key.heads, Layout::threads, Layout::shared_bytes};
        const Status status = launch("backward", window_query_gradients<Config>, queries, on, call_, row_sums_, runs);
        return status.ok() && wants_keys
                   ? launch("backward", window_key_gradients<Config>, keys, on, call_, row_sums_, runs)
                   : status;
      }
    }
    const bool aligned = rows_aligned_everywhere();
    const Grid queries{runs_of(1) * call_.query.heads, QueryLayout<Config>::threads, 0};
    const Grid keys{runs_of(1) * call_.key.heads, QueryLayout<Config>::threads, 0};
    const Status status = launch("backward", window_row_gradients<Config, false>, queries, on, call_, row_sums_, aligned);
    return status.ok() && wants_keys
               ? launch("backward", window_row_gradients<Config, true>, keys, on, call_, row_sums_, aligned)
               : status;
  }

 private:
  /// Whether matrix units compute tiles of scores.
  [[nodiscard]] bool on_tiles() const {
    using Layout = WindowBackwardLayout<Config>;
    return Layout::supported && rows_aligned_everywhere() && call_.query.tokens <= Layout::max_tokens;
  }

  [[nodiscard]] std::int64_t runs_of(std::int64_t run) const {
    return row_runs(call_.sequences, call_.query.batch, call_.query.tokens, run);
  }

  /// Whether all rows can be read and written 16 bytes at a time.
  [[nodiscard]] bool rows_aligned_everywhere() const {
    const auto aligned = [](const auto& view) {
      return rows_aligned(view.data, view.batch_stride, view.token_stride, view.head_stride);
    };
    constexpr int each = access_bytes / static_cast<int>(sizeof(Element));
    return Config::head_dim % each == 0 && Config::value_dim % each == 0 && aligned(call_.query) && aligned(call_.key) &&
           aligned(call_.value) && aligned(call_.output) && aligned(call_.output_gradient) &&
           aligned(call_.query_gradient) && aligned(call_.key_gradient) && aligned(call_.value_gradient);
  }

  const Call& call_;
  RowSums* row_sums_ = nullptr;  // [batch][query heads][tokens]
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
