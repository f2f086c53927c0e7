// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "jrt_lm/language_model.hpp"
#include "jrt_lm/prompt_graphs.hpp"

namespace jrt_lm {

/// Rows [first, first + count) of one array, which belong at row `to` of another.
struct RowRange {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t to = 0;
};

/// The next prompts that are read together, at most `tokens_per_group` tokens but at least one prompt: which token is in
/// which row, and the arrays of numbers that kernels need, in one piece for one transfer.
class PrefillPlan {
 public:
  PrefillPlan(std::span<const Prompt> prompts, LogitsOf logits, std::int64_t tokens_per_group,
              std::span<const std::int64_t> tokens_read);
  /// Of one prompt, and the logits of its last token, with rows for all tokens of `shape`: what is behind the prompt is of
  /// no sequence.
  PrefillPlan(std::span<const Prompt> prompt, const PromptShape& shape, std::span<const std::int64_t> tokens_read);

  [[nodiscard]] std::size_t prompts() const { return continues_.size(); }
  [[nodiscard]] std::int64_t rows() const { return rows_; }
  [[nodiscard]] std::int64_t encoder_rows() const { return encoder_rows_; }
  [[nodiscard]] std::int64_t longest() const { return longest_; }
  [[nodiscard]] std::int64_t logit_rows() const { return logit_rows_; }

  /// Rows whose encoder keys and values are needed, and where those go. Neighbours are joined.
  [[nodiscard]] const std::vector<RowRange>& encoder_ranges() const { return encoder_ranges_; }
  /// Rows of padding in the authors' manner, and rows of the encoder's for them.
  [[nodiscard]] const std::vector<RowRange>& zero_keys() const { return zero_keys_; }
  [[nodiscard]] const std::vector<RowRange>& zero_encoder_keys() const { return zero_encoder_keys_; }

  /// All int32 arrays, and where each begins in them.
  [[nodiscard]] std::span<const std::int32_t> data() const { return data_; }
  [[nodiscard]] std::int64_t numbers() const { return std::ssize(data_); }
  [[nodiscard]] std::int64_t tokens_at() const { return 0; }
  [[nodiscard]] std::int64_t positions_at() const { return rows_; }
  [[nodiscard]] std::int64_t slots_at() const { return 2 * rows_; }
  [[nodiscard]] std::int64_t offsets_at() const { return slots_at() + std::ssize(continues_); }
  [[nodiscard]] std::int64_t encoder_offsets_at() const { return offsets_at() + std::ssize(continues_) + 1; }
  [[nodiscard]] std::int64_t logit_rows_at() const { return encoder_offsets_at() + std::ssize(continues_) + 1; }
  /// 1 for each prompt that goes on from its slot.
  [[nodiscard]] std::span<const std::uint8_t> continues() const { return continues_; }

 private:
  std::int64_t rows_ = 0;
  std::int64_t encoder_rows_ = 0;
  std::int64_t longest_ = 0;
  std::int64_t logit_rows_ = 0;
  std::vector<RowRange> encoder_ranges_;
  std::vector<RowRange> zero_keys_;
  std::vector<RowRange> zero_encoder_keys_;
  std::vector<std::int32_t> data_;
  std::vector<std::uint8_t> continues_;
};

/// Positions are counted in 32 bits.
inline constexpr std::int64_t max_tokens = INT32_MAX;

/// Checks of a model's arguments, of which slot i has read `tokens_read[i]` tokens; std::invalid_argument with both values.
void check_slot(std::int64_t slots, std::int32_t slot);
void check_prompts(const ModelConfig& config, std::span<const std::int64_t> tokens_read, std::span<const Prompt> prompts);
void check_step(const ModelConfig& config, std::span<const std::int64_t> tokens_read, std::span<const std::int32_t> tokens,
                std::span<const std::int32_t> slots, std::int64_t steps);
void check_staged_step(const ModelConfig& config, std::span<const std::int64_t> tokens_read,
                       std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots);
void check_commit(std::span<const std::int32_t> accepted, std::int64_t sequences, std::int64_t tokens);

}  // namespace jrt_lm
