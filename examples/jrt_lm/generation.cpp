// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/generation.hpp"

#include <algorithm>
#include <chrono>
#include <jrt/prompt/repeated_prompt.hpp>
#include <jrt/prompt/short_prompt.hpp>
#include <jrt/state.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "jrt_lm/draft.hpp"
#include "jrt_lm/prefill_plan.hpp"
#include "jrt_lm/require.hpp"

namespace jrt_lm {

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One request on its way.
struct Sequence {
  std::vector<std::int32_t> read{};        ///< all tokens of the prompt, as they are read
  std::vector<jrt::PromptPiece> pieces{};  ///< of `read`, to be prefilled one after the other
  std::int64_t prefix = 0;                 ///< of the first piece
  std::int64_t zero_keys = 0;              ///< likewise
  std::vector<std::int32_t> generated{};
  PromptLookup lookup{};  ///< of all tokens, with speculation
  bool done = false;
};

Sequence sequence_of(const Request& request, const GenerationOptions& options) {
  Sequence sequence;
  const jrt::RepeatedPrompt repeated{request.context, request.query, options.separator, options.reads};
  require(jrt::check_repeated_prompt(repeated));
  if (options.reads > max_reads) {
    throw std::invalid_argument("a context is shown " + std::to_string(options.reads) +
                                " times, but may be shown at most " + std::to_string(max_reads) +
                                " times: each time is a prefill of its own");
  }
  sequence.read.resize(static_cast<std::size_t>(jrt::repeated_prompt_tokens(repeated)));
  require(jrt::write_repeated_prompt(repeated, sequence.read));
  if (options.reads == 1) {
    sequence.pieces = {{0, std::ssize(sequence.read)}};  // context and query are read at once
  } else {
    for (std::int64_t i = 0; i < jrt::repeated_prompt_pieces(repeated); ++i) {
      sequence.pieces.push_back(jrt::repeated_prompt_piece(repeated, i));
    }
  }
  jrt::PromptPiece& first = sequence.pieces.front();
  const std::int64_t missing = options.encoder_tokens - first.count;
  sequence.prefix = std::min(options.encoder_tokens, first.count);
  const ShortPromptStrategy strategy = options.short_prompt;
  if (missing > 0 && strategy != ShortPromptStrategy::shorten && options.reads != 1) {
    throw std::invalid_argument("a context of " + std::to_string(first.count) + " tokens is shown " +
                                std::to_string(options.reads) + " times, but '" + name_of(strategy) +
                                "' for short prompts needs one that is shown once");
  }
  if (missing > 0 && (strategy == ShortPromptStrategy::left_pad || strategy == ShortPromptStrategy::read_twice)) {
    if (options.encoder_tokens > max_padded_tokens) {
      throw std::invalid_argument("a prompt of " + std::to_string(first.count) + " tokens is to be padded to " +
                                  std::to_string(options.encoder_tokens) + " ('" + name_of(strategy) +
                                  "'), but padding reaches up to " + std::to_string(max_padded_tokens) +
                                  ": all of it is read as text is");
    }
    std::vector<std::int32_t> padded(static_cast<std::size_t>(options.encoder_tokens));
    if (strategy == ShortPromptStrategy::left_pad) {
      require(jrt::pad_left(sequence.read, options.pad_token, padded));
      sequence.zero_keys = missing;
    } else {
      require(jrt::pad_by_reading_twice(sequence.read, padded));
    }
    sequence.read = std::move(padded);
    first.count = sequence.prefix = options.encoder_tokens;
  }
  return sequence;
}

void check_speculation(const GenerationOptions& options) {
  if (options.speculate < 2 || options.speculate > max_staged_tokens) {
    throw std::invalid_argument("a speculative step takes " + std::to_string(options.speculate) +
                                " tokens, but must take from 2 to " + std::to_string(max_staged_tokens) +
                                " (or 0: none is speculative)");
  }
  if (!options.sampling.greedy()) {
    throw std::invalid_argument("a speculative step takes " + std::to_string(options.speculate) +
                                " tokens and keeps the likeliest, but tokens are drawn: top-k is " +
                                std::to_string(options.sampling.top_k) + " and the temperature " +
                                std::to_string(options.sampling.temperature) +
                                " (speculation needs top-k 1 or temperature 0)");
  }
}

class Run {
 public:
  Run(LanguageModel& model, std::span<const Request> requests, const GenerationOptions& options, const Progress& progress)
      : model_(model), options_(options), progress_(progress), encoding_{options.encoder_tokens} {
    if (requests.empty() || std::ssize(requests) > model.slots()) {
      throw std::invalid_argument("there are " + std::to_string(requests.size()) + " prompts, but must be from 1 to " +
                                  std::to_string(model.slots()) + " (the model's slots)");
    }
    if (options.new_tokens < 0 || options.encoder_tokens < 0) {
      throw std::invalid_argument("new tokens and encoder tokens are " + std::to_string(options.new_tokens) + " and " +
                                  std::to_string(options.encoder_tokens) + ", but must be at least 0");
    }
    if (options.speculate != 0) {
      check_speculation(options);
    }
    for (const Request& request : requests) {
      samplers_.emplace_back(options.sampling, sequences_.size());
      sequences_.push_back(sequence_of(request, options));
      // The last new token is not read.
      const std::int64_t room = max_tokens - std::ssize(sequences_.back().read) + 1;
      if (options.new_tokens > room) {
        throw std::invalid_argument("prompt " + std::to_string(sequences_.size() - 1) + " is read as " +
                                    std::to_string(std::ssize(sequences_.back().read)) + " tokens and " +
                                    std::to_string(options.new_tokens) + " are to follow, but at most " +
                                    std::to_string(room) + " can: positions are counted in 32 bits");
      }
      if (options.speculate != 0) {
        sequences_.back().lookup = PromptLookup(sequences_.back().read);
      }
      result_.prompt_tokens += std::ssize(sequences_.back().read);
      result_.prefix_tokens += sequences_.back().prefix;
    }
  }

  Generation run() {
    const double start = seconds();
    read_prompts();
    model_.synchronize();
    const double prefilled = seconds();
    while (!finished()) {
      ++result_.decode_rounds;
      next_tokens();
    }
    model_.synchronize();
    result_.prefill_seconds = prefilled - start;
    result_.decode_seconds = seconds() - prefilled;
    for (Sequence& sequence : sequences_) {
      result_.decoded_tokens += std::max<std::int64_t>(0, std::ssize(sequence.generated) - 1);
      result_.tokens.push_back(std::move(sequence.generated));
    }
    return std::move(result_);
  }

 private:
  /// In place of a sequence: its row of logits is of no interest.
  [[nodiscard]] std::size_t nobody() const { return sequences_.size(); }

  [[nodiscard]] bool finished() const {
    return std::all_of(sequences_.begin(), sequences_.end(), [](const Sequence& sequence) { return sequence.done; });
  }

  /// Piece after piece; the sequences that have one are read together.
  void read_prompts() {
    std::int64_t read = 0;
    for (std::size_t piece = 0;; ++piece) {
      std::vector<Prompt> prompts;
      std::vector<std::size_t> who;
      for (std::size_t i = 0; i < sequences_.size(); ++i) {
        const Sequence& sequence = sequences_[i];
        if (piece < sequence.pieces.size()) {
          const jrt::PromptPiece range = sequence.pieces[piece];
          Prompt prompt{std::span(sequence.read)
                            .subspan(static_cast<std::size_t>(range.first), static_cast<std::size_t>(range.count))};
          prompt.slot = static_cast<std::int32_t>(i);
          prompt.continues = piece > 0;
          prompt.prefix = piece == 0 ? sequence.prefix : 0;
          prompt.zero_keys = piece == 0 ? sequence.zero_keys : 0;
          prompts.push_back(prompt);
          who.push_back(i);
        }
      }
      if (prompts.empty()) {
        return;
      }
      std::int64_t count = 0;
      for (const Prompt& prompt : prompts) {
        count += std::ssize(prompt.tokens);
      }
      const auto of_all = [&](double done) {
        progress_((static_cast<double>(read) + done * static_cast<double>(count)) /
                  static_cast<double>(result_.prompt_tokens));
      };
      model_.prefill(prompts, LogitsOf::last_tokens, progress_ ? Progress(of_all) : Progress{});
      read += count;
      for (std::size_t& i : who) {
        if (sequences_[i].pieces.size() != piece + 1) {
          i = nobody();  // there is more to read
        }
      }
      take_tokens(who);
    }
  }

  /// One more token for each sequence that is not done, or several if nothing has to be decided in between.
  void next_tokens() {
    std::vector<std::size_t> again;
    std::vector<std::size_t> onward(sequences_.size(), nobody());
    bool any = false;
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      if (!sequences_[i].done) {
        if (encodes_again(sequences_[i])) {
          again.push_back(i);
        } else {
          onward[i] = i;
          any = true;
        }
      }
    }
    if (!again.empty()) {
      encode_again(again);
    }
    if (any) {
      step(onward, again.empty());
    }
  }

  [[nodiscard]] bool encodes_again(const Sequence& sequence) const {
    return options_.short_prompt == ShortPromptStrategy::iterative && sequence.pieces.size() == 1 &&
           encoding_.encodes_again(std::ssize(sequence.read) + std::ssize(sequence.generated));
  }

  void encode_again(const std::vector<std::size_t>& who) {
    std::vector<std::vector<std::int32_t>> whole;
    std::vector<Prompt> prompts;
    whole.reserve(who.size());
    for (const std::size_t i : who) {
      whole.push_back(sequences_[i].read);
      whole.back().insert(whole.back().end(), sequences_[i].generated.begin(), sequences_[i].generated.end());
      Prompt prompt{whole.back()};
      prompt.slot = static_cast<std::int32_t>(i);
      prompt.prefix = encoding_.prefix(std::ssize(whole.back()));
      prompts.push_back(prompt);
    }
    model_.prefill(prompts, LogitsOf::last_tokens, {});
    take_tokens(who);
  }

  /// `rows[i]` is i, or nobody for a row of padding: the batch keeps its size, so that the model prepares one.
  void step(const std::vector<std::size_t>& rows, bool all_step) {
    std::vector<std::int32_t> tokens;
    std::vector<std::int32_t> slots;
    std::int64_t steps = std::min(options_.new_tokens, max_steps_at_once);
    for (const std::size_t i : rows) {
      const bool padding = i == nobody();
      tokens.push_back(padding ? 0 : sequences_[i].generated.back());
      slots.push_back(padding ? jrt::skip_slot : static_cast<std::int32_t>(i));
      if (!padding) {
        steps = std::min(steps, options_.new_tokens - std::ssize(sequences_[i].generated));
      }
    }
    if (all_step && options_.sampling.greedy() && !options_.stop_token && options_.speculate == 0 && steps > 1) {
      const auto several = model_.greedy_steps(tokens, slots, steps);
      result_.decode_rounds += steps - 1;
      for (std::int64_t s = 0; s < steps; ++s) {
        for (std::size_t row = 0; row < rows.size(); ++row) {
          if (rows[row] != nobody()) {
            append(rows[row], several[static_cast<std::size_t>(s) * rows.size() + row]);
          }
        }
      }
      return;
    }
    if (options_.speculate != 0 && speculate(rows, tokens, slots)) {
      return;
    }
    model_.step(tokens, slots);
    take_tokens(rows);
  }

  /// A step of several tokens, all but the first of each sequence guessed. False if there is no guess for any of them.
  bool speculate(const std::vector<std::size_t>& rows, std::span<const std::int32_t> last_tokens,
                 std::span<const std::int32_t> slots) {
    const auto count = static_cast<std::size_t>(options_.speculate);
    std::vector<std::int32_t> tokens;
    std::vector<std::size_t> guesses(rows.size());
    for (std::size_t row = 0; row < rows.size(); ++row) {
      tokens.push_back(last_tokens[row]);
      if (rows[row] != nobody()) {
        if (model_.tokens_read(slots[row]) + options_.speculate > max_tokens) {
          return false;
        }
        const std::vector<std::int32_t> draft = sequences_[rows[row]].lookup.draft(options_.speculate - 1);
        guesses[row] = draft.size();
        tokens.insert(tokens.end(), draft.begin(), draft.end());
      }
      tokens.resize((row + 1) * count);  // where nothing is guessed, a token that hardly follows
    }
    if (std::all_of(guesses.begin(), guesses.end(), [](std::size_t guessed) { return guessed == 0; })) {
      return false;
    }
    const std::vector<std::int32_t> likeliest = model_.speculative_step(tokens, slots);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      if (rows[row] == nobody()) {
        continue;
      }
      const auto of_row = [&](std::span<const std::int32_t> all) { return all.subspan(row * count, count); };
      const std::int64_t accepted = accepted_tokens(of_row(tokens), of_row(likeliest));
      result_.drafted_tokens += static_cast<std::int64_t>(guesses[row]);
      for (std::int64_t t = 0; t < accepted && !sequences_[rows[row]].done; ++t) {
        append(rows[row], of_row(likeliest)[static_cast<std::size_t>(t)]);
        result_.accepted_tokens += t > 0 && t <= static_cast<std::int64_t>(guesses[row]) ? 1 : 0;  // others fill the row
      }
    }
    return true;
  }

  /// The next token of sequence `who[row]` for each row of logits.
  void take_tokens(const std::vector<std::size_t>& who) {
    if (options_.new_tokens == 0) {
      for (Sequence& sequence : sequences_) {
        sequence.done = true;
      }
      return;
    }
    const bool greedy = options_.sampling.greedy();
    const std::vector<std::int32_t> likeliest = model_.likeliest();
    const std::vector<double> logits = greedy ? std::vector<double>{} : model_.logits();
    const auto columns = static_cast<std::size_t>(model_.config().vocabulary_rows);
    for (std::size_t row = 0; row < who.size(); ++row) {
      if (who[row] != nobody()) {
        const auto row_logits = [&] {
          return std::span(logits).subspan(row * columns, static_cast<std::size_t>(model_.config().vocabulary));
        };
        const bool draws = !greedy && likeliest[row] != no_token;
        append(who[row], draws ? samplers_[who[row]].draw(row_logits()) : likeliest[row]);
      }
    }
  }

  void append(std::size_t who, std::int32_t token) {
    Sequence& sequence = sequences_[who];
    if (token == no_token) {
      fail_not_finite(who);
    }
    sequence.generated.push_back(token);
    if (options_.speculate != 0) {
      sequence.lookup.append(token);
    }
    sequence.done = std::ssize(sequence.generated) >= options_.new_tokens || token == options_.stop_token;
  }

  [[noreturn]] void fail_not_finite(std::size_t who) {
    const Sequence& sequence = sequences_[who];
    std::string message = "sequence " + std::to_string(who) + ", step " + std::to_string(sequence.generated.size()) +
                          (sequence.generated.empty() ? " (the prompt's last token)" : "") +
                          ": logits are NaN or infinite, so that there is no next token; ";
    const std::int32_t token = sequence.generated.empty() ? sequence.read.back() : sequence.generated.back();
    const std::int64_t place = model_.first_not_finite(token, static_cast<std::int32_t>(who));
    if (place < 0) {
      message +=
          "all layers are finite, but the last norm's weight or the embedding table is not, or their product is out "
          "of the type's range";
    } else if (place == 0) {
      message += "so is the embedding of token " + std::to_string(token);
    } else {
      const auto layer = static_cast<std::size_t>(place - 1);
      message += "layer " + std::to_string(layer) + " (" + name_of(model_.config().layers[layer]) +
                 ") is the first whose output is";
    }
    throw std::runtime_error(message);
  }

  /// Tokens of greedy steps wait on the device until all are done, and so do logits that are not finite to be noticed.
  static constexpr std::int64_t max_steps_at_once = 256;

  LanguageModel& model_;
  const GenerationOptions& options_;
  const Progress& progress_;
  jrt::IterativeEncoding encoding_;
  std::vector<Sequence> sequences_;
  std::vector<Sampler> samplers_;
  Generation result_;
};

}  // namespace

const char* name_of(ShortPromptStrategy strategy) {
  switch (strategy) {
    case ShortPromptStrategy::shorten:
      return "shorten";
    case ShortPromptStrategy::left_pad:
      return "left-pad";
    case ShortPromptStrategy::read_twice:
      return "read-twice";
    default:
      return "iterative";
  }
}

Generation generate(LanguageModel& model, std::span<const Request> requests, const GenerationOptions& options,
                    const Progress& progress) {
  return Run(model, requests, options, progress).run();
}

}  // namespace jrt_lm
