// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/prefill_plan.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "support/configs.hpp"

namespace jrt::test {
namespace {

using detail::PrefillPlan;
using detail::SplitLimits;

template <class Base>
struct UpstreamPads : Base {
  using Padding = ZeroKeyPadding;
};

/// The plan of a dense batch of one.
template <class Config>
PrefillPlan plan_of(std::int64_t tokens, std::int64_t prefix, std::int32_t pad, const SplitLimits& layout) {
  PrefillArgs<Config> args;
  args.query.batch = 1;
  args.query.tokens = tokens;
  args.key_encoder.tokens = Config::Mask::reads_encoder ? prefix : 0;
  args.sequences.left_pads = &pad;
  return plan_prefill(args, layout, 0);
}

TEST_CASE_TEMPLATE("every token that takes part is in one segment, for all small sequences", Config,
                   SplitByLength<Prefix<float>, 5>, SplitByLength<Causal<float>, 3>,
                   UpstreamPads<SplitByLength<Prefix<float>, 4>>) {
  for (const std::int64_t chunk : {1, 2, 4}) {
    for (std::int64_t tokens = 0; tokens <= 24; ++tokens) {
      for (std::int64_t prefix = 0; prefix <= tokens; ++prefix) {
        for (std::int32_t pad = 0; pad <= tokens; ++pad) {
          const PrefillPlan plan = plan_of<Config>(tokens, prefix, pad, {1, 1, chunk});
          const std::int64_t first = Config::Padding::keeps_padded_keys ? 0 : pad;
          REQUIRE(plan.tokens == detail::TokenRange{first, tokens});
          REQUIRE(plan.token_segments >= 1);
          REQUIRE(plan.token_segments <= std::max<std::int64_t>(1, detail::ceil_div(tokens - first, chunk)));
          const std::int64_t encoder = Config::Mask::reads_encoder ? std::max<std::int64_t>(prefix - first, 0) : 0;
          REQUIRE(plan.encoder.size() == encoder);
          REQUIRE((plan.encoder_segments == 0) == (encoder == 0));
          REQUIRE(plan.split() == (plan.token_segments > 1 || plan.encoder_segments > 1));
          REQUIRE(plan.items() == (plan.split() ? plan.token_segments + plan.encoder_segments : 0));
        }
      }
    }
  }
}

TEST_CASE("a plan depends on the sequence alone where the split does, and stays within what there is room for") {
  using Config = SplitByLength<Prefix<float>, 5>;
  for (const std::int64_t heads : {1, 64}) {
    for (const std::int64_t workers : {1, 132}) {
      const PrefillPlan plan = plan_of<Config>(23, 11, 0, {heads, workers, 2});
      CHECK(plan.token_segments == 5);
      CHECK(plan.encoder_segments == 3);
    }
  }
  const PrefillPlan limited = plan_of<Config>(23, 11, 0, {1, 1, 2, 4, 2});
  CHECK(limited.token_segments == 4);
  CHECK(limited.encoder_segments == 2);
}

TEST_CASE("a backend may refuse to split for little: few segments, or few tokens for every worker") {
  using Config = Prefix<float>;
  SplitLimits layout{16, 264, 64};
  layout.min_segments = 3;
  layout.tokens_per_worker = 16;
  const auto expect = [&](std::int64_t heads, std::int64_t tokens, std::int64_t segments, std::int64_t encoder_segments) {
    layout.heads_in_batch = heads;
    const PrefillPlan plan = plan_of<Config>(tokens, tokens / 2, 0, layout);
    CHECK(plan.token_segments == segments);
    CHECK(plan.encoder_segments == encoder_segments);
  };
  expect(16, 2048, 8, 4);
  expect(32, 2048, 4, 2);
  expect(64, 2048, 1, 1);  // 128 workers: two for each head
  expect(64, 8192, 4, 4);
  expect(128, 32768, 1, 1);
  expect(1, 100, 1, 1);
  // Keys that are only added up are read once, whether split or not.
  const PrefillPlan sums = plan_of<Config>(0, 0, 0, layout);
  CHECK(sums.token_segments == 1);
  layout.heads_in_batch = 128;
  CHECK(layout.encoder_segments<Config::Split>(32768, 0) == 2);
}

TEST_CASE("spans with impossible numbers are pulled into the views, valid ones are left alone") {
  for (const std::int64_t bad : {-5, 0, 3, 8, 1000}) {
    for (const std::int64_t tokens : {0, 8}) {
      detail::SequenceSpan span;
      span.first_token = span.row_tokens = span.tokens = span.encoder_first = span.encoder_tokens = span.prefix =
          span.left_pad = bad;
      const auto inside = within_views(span, tokens, tokens);
      REQUIRE(inside.first_token >= 0);
      REQUIRE(inside.tokens >= 0);
      REQUIRE(inside.first_token + inside.row_tokens <= tokens);
      REQUIRE(inside.tokens <= inside.row_tokens);
      REQUIRE(inside.encoder_first >= 0);
      REQUIRE(inside.encoder_first + inside.encoder_tokens <= tokens);
      REQUIRE(inside.prefix >= 0);
      REQUIRE(inside.prefix <= inside.encoder_tokens);
      REQUIRE(inside.left_pad >= 0);
      REQUIRE(inside.left_pad <= std::max(inside.tokens, inside.prefix));
    }
  }
  const detail::SequenceSpan valid{0, 2, 5, 0, 1, 3, 4, 1, 0, 6};
  const auto same = within_views(valid, 8, 8);
  CHECK(same.first_token == 2);
  CHECK(same.tokens == 5);
  CHECK(same.prefix == 3);
  CHECK(same.left_pad == 1);
}

}  // namespace
}  // namespace jrt::test
