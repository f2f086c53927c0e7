// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "jrt/detail/plan/prefill_plan.hpp"
#include "jrt/detail/shared/linear/denominators.hpp"
#include "jrt/mixer/linear_attention.hpp"
#include "jrt/tensor_view.hpp"

/// dy·y of every query, of which a backward pass makes the gradient of its denominator.
namespace jrt::detail {

/// Whether the pass over the queries forms dy·y again, from the sums that the outputs came from:
///
///     dy·y = φ(q)·(S g) + Σ_{j<=i} w_ij (g_i·v_j),   g = f(n) dy,
///
/// instead of reading the output. An output of 16 bits is rounded; where values have a common mean, S g and z (dy·y)
/// nearly cancel in the gradient of a query, and that rounding would be most of what is left. The passes over the keys
/// wait for it then. With delayed keys the sums are but a part of the output.
template <class Config>
inline constexpr bool recomputes_output_products = has_denominators<Config> &&
                                                   sizeof(typename Config::Element) == 2 && key_delay<Config> == 0;

/// The directions in which a backward pass goes at a time.
struct Directions {
  bool forward = true;
  bool reverse = true;
};

/// Where the pass over the queries leaves what it formed again: a number for each query, of the queries' shape.
template <class Config>
TensorView<ConfigCompute<Config>> denominator_gradients_of(const BackwardArgs<Config>& args,
                                                           ConfigCompute<Config>* numbers) {
  return view_bthd(numbers, {args.query.batch, args.query.tokens, args.query.heads, 1});
}
template <class Config>
std::int64_t denominator_gradients_size(const BackwardArgs<Config>& args) {
  return recomputes_output_products<Config> ? args.query.batch * args.query.tokens * args.query.heads : 0;
}

}  // namespace jrt::detail
