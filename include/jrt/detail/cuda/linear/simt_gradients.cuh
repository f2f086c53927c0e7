// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/warp_sum.cuh"
#include "jrt/detail/cuda/linear/expand.cuh"
#include "jrt/detail/cuda/linear/simt_gradient_products.cuh"
#include "jrt/detail/plan/token_range.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/detail/shared/linear/key_source.hpp"
#include "jrt/detail/shared/linear/output_products.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/sequences.hpp"
#include "jrt/tensor_view.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// Where the gradients of a head's keys and values go; either view may be empty.
template <class Element>
struct KeyGradients {
  TensorView<Element> key;
  TensorView<Element> value;
};

/// The passes of the backward pass over one head's tokens by one block, on the ordinary arithmetic units, in the compute
/// type: for every type, feature map and dimension. The state is S or R, as the pass needs it; both have the last column
/// (z, or the gradient of it) apart.
template <AttentionConfig Config>
class SimtGradients : private SimtGradientProducts<Config> {
  using Products = SimtGradientProducts<Config>;

 public:
  using Layout = typename Products::Layout;
  using T = typename Products::T;
  using Map = typename Products::Map;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;

  static constexpr int threads = Products::threads;
  static constexpr int chunk = Products::chunk;
  static constexpr std::size_t shared_bytes = static_cast<std::size_t>(Layout::shared_elements) * sizeof(T);
  static constexpr std::int64_t scratch_bytes = Layout::scratch_elements * static_cast<std::int64_t>(sizeof(T));

  using Products::Products;

  /// Calls `function(index in the state format, value)` for all values of the state.
  template <class Function>
  __device__ void for_state(const Function& function) {
    __syncthreads();
    for (int i = thread(); i < Layout::state_elements; i += threads) {
      const int r = i / Layout::columns;
      const int c = i % Layout::columns;
      if (r < Format::rows && c < Format::columns) {
        function(std::int64_t{r} * Format::columns + c, state_[i]);
      } else {
        state_[i] = T(0);
      }
    }
    for (int r = thread(); r < Layout::rows; r += threads) {
      if (r < Format::rows) {
        function(Format::normaliser_offset + r, last_column_[r]);
      } else {
        last_column_[r] = T(0);
      }
    }
    __syncthreads();
  }

  /// S += Σ φ(k)vᵀ over a range, with z.
  __device__ void add_keys(const KeySource<Element>& source, const TokenRange& range) {
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      read_keys(source, begin, tokens);
      __syncthreads();
      expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
      __syncthreads();
      update(key_features_, values_, nullptr, tokens);
      __syncthreads();
    }
  }

  /// R += Σ φ(q)gᵀ over a range and all query heads of a key/value head, in the order of the key pass.
  __device__ void add_queries(const SequenceSpan& span, const TokenRange& range, std::int64_t head) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = last_chunk(range); begin >= range.begin; begin -= chunk) {
      const int tokens = tokens_from(range, begin);
      for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
        read_queries<false>(span, begin, tokens, h);
        __syncthreads();
        expand<Side::query>(query_inputs_, query_features_, span, begin, tokens);
        __syncthreads();
        update(query_features_, gradient_, denominator_gradient_, tokens);
        __syncthreads();
      }
    }
  }

  /// Gradients of queries from S before the range, which becomes S after it unless the mask reads all tokens. `keyed` are
  /// the tokens of the range that have a key.
  __device__ void query_pass(const KeySource<Element>& source, const TokenRange& range, const TokenRange& keyed) {
    if constexpr (full) {
      query_chunks<false>(source, range);
    } else {
      if constexpr (key_delay<Config> != 0) {
        query_chunks<false>(source, {range.begin, keyed.begin});
      }
      query_chunks<true>(source, keyed);
    }
  }

  /// The same for tokens that all have keys, or of which none has, or that see them only through the state.
  template <bool with_keys>
  __device__ void query_chunks(const KeySource<Element>& source, const TokenRange& range) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = range.begin; begin < range.end; begin += chunk) {
      const int tokens = tokens_from(range, begin);
      if constexpr (with_keys) {
        read_keys(source, begin, tokens);
        if constexpr (!shares_features) {
          __syncthreads();
          expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
        }
      }
      for (std::int64_t h = source.head * group; h < (source.head + 1) * group; ++h) {
        read_queries<recomputes>(source.span, begin, tokens, h);
        clear_inputs_gradient();
        __syncthreads();
        if constexpr (recomputes) {
          expand<Side::query>(query_inputs_, query_features_, source.span, begin, tokens);
          __syncthreads();
        }
        if constexpr (with_keys) {
          Products::template pair<!recomputes>(tokens);
        }
        multiply_state(gradient_, denominator_gradient_, tokens);
        __syncthreads();
        if constexpr (recomputes) {
          recompute_denominator_gradients<with_keys>(source.span, begin, tokens, h);
          __syncthreads();
          Products::template add_denominator_gradients<with_keys>(tokens);
          __syncthreads();
        }
        if constexpr (with_keys) {
          if constexpr (Map::has_closed_form) {
            add_pairs(inputs_gradient_, Layout::input_stride, Map::input_dim, key_inputs_, Layout::input_stride, tokens,
                      false);
          } else {
            add_pairs(features_gradient_, Layout::feature_stride, Layout::rows, key_features_, Layout::feature_stride,
                      tokens, false);
          }
          __syncthreads();
        }
        vjp<Side::query>(query_inputs_, source.span, begin, tokens);
        __syncthreads();
        write(args_.query_gradient, inputs_gradient_, Layout::input_stride, source.span.batch_row,
              source.span.first_token + begin, tokens, h, 0);
        __syncthreads();
      }
      if constexpr (with_keys) {
        if constexpr (shares_features) {
          expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
          __syncthreads();
        }
        update(key_features_, values_, nullptr, tokens);
        __syncthreads();
      }
    }
  }

  /// Gradients of keys and values, last chunk first, from R after the range, which becomes R before it `with_queries`. The
  /// encoder region has no queries of its own, and neither has a mask that reads all tokens: their R is the whole sum.
  __device__ void key_pass(const KeySource<Element>& source, const TokenRange& range, bool with_queries,
                           const KeyGradients<Element>& to) {
    const std::int64_t group = args_.query.heads / args_.key.heads;
    for (std::int64_t begin = last_chunk(range); begin >= range.begin; begin -= chunk) {
      const int tokens = tokens_from(range, begin);
      read_keys(source, begin, tokens);
      clear_inputs_gradient();
      __syncthreads();
      expand<Side::key>(key_inputs_, key_features_, source.span, begin, tokens);
      multiply_state(values_, nullptr, tokens);
      __syncthreads();
      multiply_features(tokens);
      __syncthreads();
      for (std::int64_t h = source.head * group; with_queries && h < (source.head + 1) * group; ++h) {
        read_queries<false>(source.span, begin, tokens, h);
        __syncthreads();
        if constexpr (!Map::has_closed_form) {
          expand<Side::query>(query_inputs_, query_features_, source.span, begin, tokens);
          __syncthreads();
        }
        Products::template pair<true>(tokens);
        __syncthreads();
        add_weighted_gradients(tokens);
        if constexpr (Map::has_closed_form) {
          add_pairs(inputs_gradient_, Layout::input_stride, Map::input_dim, query_inputs_, Layout::input_stride, tokens,
                    true);
          expand<Side::query>(query_inputs_, query_features_, source.span, begin, tokens);
        } else {
          add_pairs(features_gradient_, Layout::feature_stride, Layout::rows, query_features_, Layout::feature_stride,
                    tokens, true);
        }
        __syncthreads();
        update(query_features_, gradient_, denominator_gradient_, tokens);
        __syncthreads();
      }
      vjp<Side::key>(key_inputs_, source.span, begin, tokens);
      __syncthreads();
      const auto zero_keys = static_cast<int>(clamped(source.zero_keys - begin, 0, chunk));
      write(to.key, inputs_gradient_, Layout::input_stride, source.row, source.first + begin, tokens, source.head,
            zero_keys);
      write(to.value, values_gradient_, Layout::value_stride, source.row, source.first + begin, tokens, source.head, 0);
      __syncthreads();
    }
  }

 private:
  static constexpr bool full = Config::Mask::reads_future;
  static constexpr bool recomputes = recomputes_output_products<Config>;
  /// Whether the query pass needs the features of queries and of keys in one array.
  static constexpr bool shares_features = recomputes && Map::has_closed_form;

  using Products::args_;
  using Products::denominator_gradient_;
  using Products::denominator_gradients_;
  using Products::features_gradient_;
  using Products::gradient_;
  using Products::inputs_gradient_;
  using Products::key_features_;
  using Products::key_inputs_;
  using Products::last_column_;
  using Products::query_features_;
  using Products::query_inputs_;
  using Products::state_;
  using Products::values_;
  using Products::values_gradient_;

  using Products::add_pairs;
  using Products::add_weighted_gradients;
  using Products::clear_inputs_gradient;
  using Products::multiply_features;
  using Products::multiply_state;
  using Products::thread;
  using Products::update;

  static __device__ int tokens_from(const TokenRange& range, std::int64_t begin) {
    return static_cast<int>(smaller<std::int64_t>(chunk, range.end - begin));
  }
  static __device__ std::int64_t last_chunk(const TokenRange& range) {
    return range.begin + (ceil_div<std::int64_t>(range.size(), chunk) - 1) * chunk;
  }

  __device__ void read_keys(const KeySource<Element>& source, std::int64_t begin, int tokens) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      const bool zero = begin + t < source.zero_keys;
      key_inputs_[t * Layout::input_stride + c] = zero ? T(0) : convert<T>(source.key_row(begin + t)[c]);
    }
    for (int i = thread(); i < tokens * Layout::columns; i += threads) {
      const int t = i / Layout::columns;
      const int c = i % Layout::columns;
      values_[t * Layout::value_stride + c] = c < Format::columns ? convert<T>(source.value_row(begin + t)[c]) : T(0);
    }
  }

  /// Lanes that read a row of outputs or gradients together.
  static constexpr int row_lanes = 8;
  /// Calls `function(t, whether the token is there)` on the lanes of every token, all lanes of a warp together.
  template <class Function>
  static __device__ void for_rows(int tokens, const Function& function) {
    for (int t = thread() / row_lanes; t < round_up(tokens, 32 / row_lanes); t += threads / row_lanes) {
      function(t < tokens ? t : 0, t < tokens);
    }
  }

  /// Queries and g = [f(n) dy, f'(n)/f(n) (dy · y)]. The last component is 0 where it is yet `to_be_formed`.
  template <bool to_be_formed>
  __device__ void read_queries(const SequenceSpan& span, std::int64_t begin, int tokens, std::int64_t head) {
    for (int i = thread(); i < tokens * Map::input_dim; i += threads) {
      const int t = i / Map::input_dim;
      const int c = i % Map::input_dim;
      query_inputs_[t * Layout::input_stride + c] =
          convert<T>(args_.query.row(span.batch_row, span.first_token + begin + t, head)[c]);
    }
    const int lane = thread() % row_lanes;
    for_rows(tokens, [&](int t, bool there) {
      const std::int64_t token = span.first_token + begin + t;
      const Element* const dy = args_.output_gradient.row(span.batch_row, token, head);
      T factor = 1;
      T last = 0;
      if constexpr (has_denominators<Config>) {
        const T denominator = *args_.denominators.row(span.batch_row, token, head);
        factor = Config::Normaliser::factor(denominator);
        if constexpr (!recomputes) {
          const Element* const y = args_.output.row(span.batch_row, token, head);
          T product = 0;
          for (int c = lane; c < Format::columns; c += row_lanes) {
            product += convert<T>(y[c]) * convert<T>(dy[c]);
          }
          last = denominator_gradient(denominator, warp_sum<row_lanes>(product));
        } else if constexpr (!to_be_formed) {
          last = *denominator_gradients_.row(span.batch_row, token, head);
        }
      }
      for (int c = lane; there && c < Layout::columns; c += row_lanes) {
        gradient_[t * Layout::value_stride + c] = c < Format::columns ? convert<T>(dy[c]) * factor : T(0);
      }
      if (there && lane == 0) {
        denominator_gradient_[t] = last;
      }
    });
  }

  /// The last components of g from the numerators and denominators as the sums give them; kept for the key pass. The
  /// prefill's denominators come of rounded weights, and do not go with these numerators where few keys nearly cancel.
  template <bool with_keys>
  __device__ void recompute_denominator_gradients(const SequenceSpan& span, std::int64_t begin, int tokens,
                                                  std::int64_t head) {
    const int lane = thread() % row_lanes;
    for_rows(tokens, [&](int t, bool there) {
      const auto own = Products::template output_sums<with_keys>(t, lane, row_lanes);
      const T product = warp_sum<row_lanes>(own.product);
      const T denominator = warp_sum<row_lanes>(own.denominator);
      if (there && lane == 0) {
        const std::int64_t token = span.first_token + begin + t;
        const T last = denominator_gradient(denominator, product);
        denominator_gradient_[t] = last;
        *denominator_gradients_.row(span.batch_row, token, head) = last;
      }
    });
  }

  /// f'(n)/f(n) (dy · y). A query that saw no key has the output 0 whatever it is: no gradient.
  static __device__ T denominator_gradient(T denominator, T product) {
    const T factor = Config::Normaliser::factor(denominator);
    return factor == T(0) ? T(0) : Config::Normaliser::factor_derivative(denominator) / factor * product;
  }

  template <Side side>
  __device__ void expand(const T* inputs, T* features, const SequenceSpan& span, std::int64_t begin, int tokens) {
    expand_vectors<side>(args_.feature_map, inputs, Layout::input_stride, features, Layout::feature_stride, Layout::rows,
                         tokens, [&](int t) { return span.position(begin + t); });
  }

  /// inputs_gradient[t] += J(inputs[t])ᵀ features_gradient[t].
  template <Side side>
  __device__ void vjp(const T* inputs, const SequenceSpan& span, std::int64_t begin, int tokens) {
    vectors_vjp<side>(args_.feature_map, inputs, Layout::input_stride, features_gradient_, Layout::feature_stride,
                      inputs_gradient_, tokens, [&](int t) { return span.position(begin + t); });
  }

  /// Writes rows, the first `zero_rows` as 0, if there is a view.
  __device__ void write(const TensorView<Element>& to, const T* rows, int stride, std::int64_t batch_row,
                        std::int64_t first, int tokens, std::int64_t head, int zero_rows) {
    const int width = static_cast<int>(to.dim);
    for (int index = thread(); to.data != nullptr && index < tokens * width; index += threads) {
      const int t = index / width;
      const int c = index % width;
      to.row(batch_row, first + t, head)[c] = convert<Element>(t < zero_rows ? T(0) : rows[t * stride + c]);
    }
  }
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
