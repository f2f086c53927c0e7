// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/prefill_plan.hpp"

#include <algorithm>
#include <jrt/state.hpp>
#include <stdexcept>
#include <string>

namespace jrt_lm {

namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument(what);
}

/// `where()` says which token it is; a prompt has millions that are right.
template <class Where>
void check_token(const ModelConfig& config, std::int32_t token, const Where& where) {
  // The padding of the vocabulary may be read: training masks tokens with its last row (50263 of 50264).
  if (token < 0 || token >= config.vocabulary_rows) {
    fail(where() + " is token " + std::to_string(token) + ", but the embeddings have tokens from 0 to " +
         std::to_string(config.vocabulary_rows - 1));
  }
}

/// No two of the slots are the same, those of padding aside.
void check_distinct(std::span<const std::int32_t> slots) {
  std::vector<std::int32_t> sorted(slots.begin(), slots.end());
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i] == sorted[i - 1] && sorted[i] != jrt::skip_slot) {
      fail("two sequences of a call have slot " + std::to_string(sorted[i]));
    }
  }
}

}  // namespace

PrefillPlan::PrefillPlan(std::span<const Prompt> prompts, LogitsOf logits, std::int64_t tokens_per_group,
                         std::span<const std::int64_t> tokens_read) {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> slots;
  std::vector<std::int32_t> offsets{0};
  std::vector<std::int32_t> encoder_offsets{0};
  std::vector<std::int32_t> logit_rows;
  for (const Prompt& prompt : prompts) {
    const std::int64_t count = std::ssize(prompt.tokens);
    if (rows_ > 0 && rows_ + count > tokens_per_group) {
      break;
    }
    if (prompt.prefix > 0) {
      if (!encoder_ranges_.empty() && encoder_ranges_.back().first + encoder_ranges_.back().count == rows_) {
        encoder_ranges_.back().count += prompt.prefix;
      } else {
        encoder_ranges_.push_back({rows_, prompt.prefix, encoder_rows_});
      }
    }
    if (prompt.zero_keys > 0) {
      zero_keys_.push_back({rows_, prompt.zero_keys, rows_});
      if (const std::int64_t zeros = std::min(prompt.zero_keys, prompt.prefix); zeros > 0) {
        zero_encoder_keys_.push_back({encoder_rows_, zeros, encoder_rows_});
      }
    }
    const std::int64_t before = prompt.continues ? tokens_read[static_cast<std::size_t>(prompt.slot)] : 0;
    tokens.insert(tokens.end(), prompt.tokens.begin(), prompt.tokens.end());
    for (std::int64_t t = 0; t < count; ++t) {
      positions.push_back(static_cast<std::int32_t>(before + t));
      if (logits == LogitsOf::all_tokens || t == count - 1) {
        logit_rows.push_back(static_cast<std::int32_t>(rows_ + t));
      }
    }
    rows_ += count;
    encoder_rows_ += prompt.prefix;
    longest_ = std::max(longest_, count);
    slots.push_back(prompt.slot);
    offsets.push_back(static_cast<std::int32_t>(rows_));
    encoder_offsets.push_back(static_cast<std::int32_t>(encoder_rows_));
    continues_.push_back(prompt.continues ? 1 : 0);
  }
  logit_rows_ = std::ssize(logit_rows);
  for (const auto* part : {&tokens, &positions, &slots, &offsets, &encoder_offsets, &logit_rows}) {
    data_.insert(data_.end(), part->begin(), part->end());
  }
}

PrefillPlan::PrefillPlan(std::span<const Prompt> prompt, const PromptShape& shape,
                         std::span<const std::int64_t> tokens_read)
    : PrefillPlan(prompt, LogitsOf::last_tokens, shape.rows, tokens_read) {
  const auto first = data_.begin();
  const auto more = static_cast<std::size_t>(shape.rows - rows_);
  data_.insert(first + 2 * rows_, more, 0);      // positions
  data_.insert(data_.begin() + rows_, more, 0);  // tokens
  rows_ = shape.rows;
  longest_ = shape.rows;
  encoder_rows_ = shape.encoder_rows;
  if (shape.encoder_rows > 0) {
    encoder_ranges_ = {{0, shape.encoder_rows, 0}};
  }
}

void check_slot(std::int64_t slots, std::int32_t slot) {
  if (slot < 0 || slot >= slots) {
    fail("slot " + std::to_string(slot) + " is not one of the model's, which are from 0 to " + std::to_string(slots - 1));
  }
}

void check_prompts(const ModelConfig& config, std::span<const std::int64_t> tokens_read, std::span<const Prompt> prompts) {
  std::vector<std::int32_t> used;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Prompt& prompt = prompts[i];
    const std::int64_t count = std::ssize(prompt.tokens);
    const std::string name = "prompt " + std::to_string(i);
    check_slot(std::ssize(tokens_read), prompt.slot);
    const std::int64_t room = max_tokens - (prompt.continues ? tokens_read[static_cast<std::size_t>(prompt.slot)] : 0);
    if (count == 0 || count > room) {
      fail(name + " has " + std::to_string(count) + " tokens, but must have from 1 to " + std::to_string(room));
    }
    for (std::int64_t t = 0; t < count; ++t) {
      check_token(config, prompt.tokens[static_cast<std::size_t>(t)],
                  [&] { return name + ", position " + std::to_string(t) + ","; });
    }
    used.push_back(prompt.slot);
    const std::int64_t most = config.has_encoder && !prompt.continues ? count : 0;
    if (prompt.prefix < 0 || prompt.prefix > most) {
      fail(name + " has a prefix of " + std::to_string(prompt.prefix) + " tokens, but may have at most " +
           std::to_string(most) +
           (prompt.continues      ? " (it continues a sequence)"
            : !config.has_encoder ? " (the model has no encoder region)"
                                  : " (its own)"));
    }
    if (prompt.zero_keys < 0 || prompt.zero_keys > count) {
      fail(name + " has " + std::to_string(prompt.zero_keys) + " zero keys, but " + std::to_string(count) + " tokens");
    }
  }
  check_distinct(used);
}

void check_step(const ModelConfig& config, std::span<const std::int64_t> tokens_read, std::span<const std::int32_t> tokens,
                std::span<const std::int32_t> slots, std::int64_t steps) {
  if (tokens.empty() || tokens.size() != slots.size()) {
    fail("a step has " + std::to_string(tokens.size()) + " tokens for " + std::to_string(slots.size()) +
         " slots, but must have one for each, and at least one");
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    check_token(config, tokens[i], [&] { return "row " + std::to_string(i) + " of a step"; });
    std::int64_t room = max_tokens;
    if (slots[i] != jrt::skip_slot) {
      check_slot(std::ssize(tokens_read), slots[i]);
      room -= tokens_read[static_cast<std::size_t>(slots[i])];
    }
    if (steps < 1 || steps > room) {
      fail("there are " + std::to_string(steps) + " steps, but slot " + std::to_string(slots[i]) + " can take from 1 to " +
           std::to_string(room));
    }
  }
  check_distinct(slots);
}

void check_staged_step(const ModelConfig& config, std::span<const std::int64_t> tokens_read,
                       std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots) {
  const std::int64_t count = slots.empty() ? 0 : std::ssize(tokens) / std::ssize(slots);
  if (slots.empty() || count < 1 || count > max_staged_tokens || count * std::ssize(slots) != std::ssize(tokens)) {
    fail("a staged step has " + std::to_string(tokens.size()) + " tokens for " + std::to_string(slots.size()) +
         " slots, but must have as many for each, from 1 to " + std::to_string(max_staged_tokens) +
         ", and at least one slot");
  }
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    check_token(config, tokens[i], [&] { return "row " + std::to_string(i) + " of a staged step"; });
  }
  for (const std::int32_t slot : slots) {
    if (slot != jrt::skip_slot) {
      check_slot(std::ssize(tokens_read), slot);
      const std::int64_t room = max_tokens - tokens_read[static_cast<std::size_t>(slot)];
      if (count > room) {
        fail("a staged step has " + std::to_string(count) + " tokens for slot " + std::to_string(slot) +
             ", which can take at most " + std::to_string(room));
      }
    }
  }
  check_distinct(slots);
}

void check_commit(std::span<const std::int32_t> accepted, std::int64_t sequences, std::int64_t tokens) {
  if (std::ssize(accepted) != sequences) {
    fail("a commit has " + std::to_string(accepted.size()) + " numbers of tokens, but the staged step had " +
         std::to_string(sequences) + " sequences");
  }
  for (const std::int32_t count : accepted) {
    if (count < 0 || count > tokens) {
      fail("a commit takes " + std::to_string(count) + " tokens of a sequence, but must take from 0 to " +
           std::to_string(tokens) + " (of the staged step)");
    }
  }
}

}  // namespace jrt_lm
