// SPDX-License-Identifier: Apache-2.0
#include <jrt/detail/plan/sequence_runs.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace jrt::detail {
namespace {

/// Whether the runs that have rows are, for each sequence of these views, one after the other and as many as it needs.
void check_runs(const Sequences& sequences, std::int64_t batch, std::int64_t tokens, std::int64_t run) {
  CAPTURE(run);
  CAPTURE(tokens);
  const std::int64_t count = sequence_count(sequences, batch);
  std::vector<std::pair<std::int64_t, std::int64_t>> expected;  // sequence and first row
  for (std::int64_t b = 0; b < count; ++b) {
    const SequenceSpan span = sequence_span(sequences, b, tokens, 0);
    for (std::int64_t row = 0; row < span.row_tokens; row += run) {
      expected.emplace_back(b, row);
    }
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> found;
  for (std::int64_t index = 0; index < row_runs(sequences, batch, tokens, run); ++index) {
    const RowRun rows(sequences, tokens, index, run);
    REQUIRE(rows.b >= 0);
    REQUIRE(rows.b < count);
    if (rows.within(within_views(sequence_span(sequences, rows.b, tokens, 0), tokens, 0))) {
      found.emplace_back(rows.b, rows.first_row);
    }
  }
  REQUIRE(found == expected);
}

void check_packed(const std::vector<std::int64_t>& lengths, std::int64_t run) {
  std::vector<std::int32_t> offsets{0};
  for (const std::int64_t length : lengths) {
    offsets.push_back(offsets.back() + static_cast<std::int32_t>(length));
  }
  Sequences sequences;
  sequences.count = std::ssize(lengths);
  sequences.cu_seqlens = offsets.data();
  check_runs(sequences, 1, offsets.back(), run);
}

TEST_CASE("packed sequences: every three of small lengths") {
  for (std::int64_t run = 1; run <= 5; ++run) {
    for (std::int64_t a = 0; a <= 11; ++a) {
      check_packed({a}, run);
      for (std::int64_t b = 0; b <= 11; ++b) {
        for (std::int64_t c = 0; c <= 11; ++c) {
          check_packed({a, b, c}, run);
        }
      }
    }
  }
}

TEST_CASE("packed sequences: many tiny ones, empty ones, long ones") {
  std::mt19937 random(1);
  for (const std::int64_t run : {1, 2, 7, 64, 1000}) {
    check_packed(std::vector<std::int64_t>(300, 1), run);
    check_packed(std::vector<std::int64_t>(300, 0), run);
    check_packed({0, 0, 5000, 0, 1, 3000, 0}, run);
    for (int i = 0; i < 20; ++i) {
      std::vector<std::int64_t> lengths(1 + random() % 40);
      for (std::int64_t& length : lengths) {
        const std::int64_t most = random() % 4 == 0 ? 900 : 3;
        length = static_cast<std::int64_t>(random() % static_cast<unsigned>(most + 1));
      }
      check_packed(lengths, run);
    }
  }
}

TEST_CASE("a few runs too many: at most one for each packed sequence") {
  std::vector<std::int32_t> offsets{0, 3, 3, 10, 11};
  Sequences sequences;
  sequences.count = 4;
  sequences.cu_seqlens = offsets.data();
  CHECK(row_runs(sequences, 1, 11, 4) == 2 + 4);
  CHECK(row_runs({}, 3, 11, 4) == 9);
}

TEST_CASE("dense sequences") {
  for (std::int64_t run = 1; run <= 6; ++run) {
    for (std::int64_t batch = 0; batch <= 3; ++batch) {
      for (std::int64_t tokens = 0; tokens <= 14; ++tokens) {
        check_runs({}, batch, tokens, run);
      }
    }
  }
}

TEST_CASE("whatever offsets a device finds, a run has rows of one sequence within the views, or none") {
  constexpr std::int64_t tokens = 20;
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::int32_t> offsets(2 + random() % 6);
    for (std::int32_t& offset : offsets) {
      offset = random() % 8 == 0 ? INT32_MIN + static_cast<std::int32_t>(random() % 3)
                                 : static_cast<std::int32_t>(random() % 60) - 20;
    }
    Sequences sequences;
    sequences.count = std::ssize(offsets) - 1;
    sequences.cu_seqlens = offsets.data();
    for (const std::int64_t run : {1, 3, 64}) {
      for (std::int64_t index = 0; index < row_runs(sequences, 1, tokens, run); ++index) {
        const RowRun rows(sequences, tokens, index, run);
        REQUIRE(rows.b >= 0);
        REQUIRE(rows.b < sequences.count);
        const SequenceSpan span = within_views(sequence_span(sequences, rows.b, tokens, 0), tokens, 0);
        if (rows.within(span)) {
          REQUIRE(rows.first_row >= 0);
          REQUIRE(span.first_token + rows.first_row < tokens);
        }
      }
    }
  }
}

}  // namespace
}  // namespace jrt::detail
