// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "jrt_lm/model_config.hpp"
#include "jrt_lm/ranks.hpp"
#include "jrt_lm/weights.hpp"

namespace jrt_lm {

/// Tokens that a sequence goes on with, and where its state is.
struct Prompt {
  std::span<const std::int32_t> tokens{};
  std::int32_t slot = 0;
  std::int64_t prefix = 0;     ///< M: so many of these tokens are the encoder region; 0 where `continues`
  std::int64_t zero_keys = 0;  ///< leading tokens whose keys linear attention sees as 0: the authors' left padding
  bool continues = false;      ///< from the slot's state; otherwise the sequence starts here
};

enum class LogitsOf {
  last_tokens,  ///< a row for each sequence
  all_tokens,   ///< a row for each token, sequence after sequence
};

/// Is told after each layer which part of a prefill is done; of a short prompt and of one on several ranks only the end.
/// Having one makes the host wait for every layer.
using Progress = std::function<void(double done)>;

/// In place of the likeliest token where logits are not finite: weights or states are not, or numbers have left their type.
inline constexpr std::int32_t no_token = -1;

/// A staged step has at most so many tokens of a sequence.
inline constexpr std::int64_t max_staged_tokens = 16;

/// A JRT-RNN or Based model on some device: weights, and the states of `slots` sequences. A slot of constant size is all
/// that a sequence is; what is in it need not be cleared before a prompt that does not continue.
///
/// Errors are std::invalid_argument (tokens outside the vocabulary, slots outside the pool, …) or, of the device's and for
/// states that are not the model's, std::runtime_error. What `invalid_argument` and a failed `load` were told to change is
/// as it was; after another error of a prefill or step its sequences must start anew.
class LanguageModel {
 public:
  LanguageModel() = default;
  LanguageModel(const LanguageModel&) = delete;
  LanguageModel& operator=(const LanguageModel&) = delete;
  virtual ~LanguageModel() = default;

  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  [[nodiscard]] virtual std::int64_t slots() const = 0;
  /// What a sequence keeps, constant in its length.
  [[nodiscard]] virtual std::int64_t state_bytes() const = 0;
  /// All memory that the model holds on its device at present: weights, states, activations, workspace.
  [[nodiscard]] virtual std::int64_t device_bytes() const = 0;
  [[nodiscard]] virtual std::string device_name() const = 0;
  /// Whether the last step was one kernel.
  [[nodiscard]] virtual bool stepped_in_one_kernel() const = 0;

  /// Reads prompts. Sequences may have any lengths; no two may have one slot. Afterwards there are logits.
  virtual void prefill(std::span<const Prompt> prompts, LogitsOf rows, const Progress& progress) = 0;
  /// One token for each slot (jrt::skip_slot: a row of padding). Afterwards there are logits, a row for each.
  virtual void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots) = 0;
  /// `steps` steps, each fed with the likeliest tokens after the one before, without a word to the host in between. Returns
  /// (steps, rows) tokens: the likeliest after each step, or no_token; what follows no_token in its row means nothing.
  virtual std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots,
                                                 std::int64_t steps) = 0;

  /// A step of several tokens for each slot, (slots, count) with count from 1 to max_staged_tokens, which leaves the states
  /// as they were. Afterwards there are logits, a row for each token: those after it and all before it.
  virtual void staged_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> slots) = 0;
  /// The i-th sequence of the staged step that was the last call has read the first `accepted[i]` of its tokens now, and so
  /// may go on. States are as after steps of one token, but for rounding.
  virtual void commit(std::span<const std::int32_t> accepted) = 0;
  /// A staged step and a commit of `accepted_tokens` (draft.hpp) of each sequence, without a word to the host in between:
  /// all tokens but the first of each are guesses. Returns (slots, count) tokens: the likeliest after each, or no_token.
  virtual std::vector<std::int32_t> speculative_step(std::span<const std::int32_t> tokens,
                                                     std::span<const std::int32_t> slots) = 0;

  /// Of the last call: (rows, vocabulary rows).
  [[nodiscard]] virtual std::vector<double> logits() = 0;
  /// The likeliest token of each row of logits, the first of several; no_token where a logit of the vocabulary is NaN or
  /// infinite.
  [[nodiscard]] virtual std::vector<std::int32_t> likeliest() = 0;
  /// For messages: reads `token` once more in a slot whose logits were not finite and tells where the residual stream is
  /// not finite first: 0 the token's embedding, i layer i - 1, -1 nowhere (the last norm or the table that makes logits).
  /// The sequence must start anew afterwards.
  [[nodiscard]] virtual std::int64_t first_not_finite(std::int32_t token, std::int32_t slot) = 0;

  /// Tokens that the sequence in a slot has read.
  [[nodiscard]] virtual std::int64_t tokens_read(std::int32_t slot) const = 0;
  /// One sequence becomes two.
  virtual void fork(std::int32_t from, std::int32_t to) = 0;
  /// The state of a sequence as bytes, for `load` into any slot of a model of the same configuration and type, on any
  /// device.
  [[nodiscard]] virtual std::vector<std::byte> save(std::int32_t slot) = 0;
  virtual void load(std::span<const std::byte> bytes, std::int32_t slot) = 0;

  /// Seconds that this device takes to do nothing but read as many bytes as the weights of a step have; 0: not measured
  /// here. For comparison with a step.
  [[nodiscard]] virtual double seconds_to_read_weights() { return 0; }

  /// Waits until all work is done; for clocks.
  virtual void synchronize() = 0;

  /// Of several ranks (ranked_model.hpp), each with its model. The calling thread's device becomes the model's.
  virtual void use_device() = 0;
  /// A connection of that many ranks, for the models of all. The calling thread's device may be another afterwards.
  [[nodiscard]] virtual std::unique_ptr<RankGroup> make_group(int ranks) = 0;
  /// This model is rank `rank` of the group from now on, which must outlive its next `join`.
  virtual void join(RankGroup& group, int rank) = 0;
  /// Everything of a rank's piece that may wait for its device, before any rank begins: memory, and a rehearsal of one
  /// layer of each kind without the exchanges, in which kernels are chosen and loaded.
  virtual void prepare_piece(const RankedPrompt& prompt, int rank) = 0;
  /// Reads the piece that was prepared; called for all ranks at once, each in a thread. `enqueued`, if there is one, is
  /// told how many layers are on their way. Afterwards the last rank has the sequence's state and its logits.
  virtual void read_piece(const RankedPrompt& prompt, int rank, const std::function<void(std::int64_t)>& enqueued) = 0;
};

enum class DeviceKind { cpu, cuda };
enum class NumberType { float64, float32, float16, bfloat16 };

const char* name_of(DeviceKind device);
const char* name_of(NumberType type);

struct ModelOptions {
  DeviceKind device = DeviceKind::cpu;
  NumberType type = NumberType::float32;
  std::int64_t slots = 1;
  int threads = 1;          ///< of the CPU
  int rank = 0;             ///< of several: the GPU
  double rank_seconds = 0;  ///< of several ranks to read a prompt: more is an error; 0: the device's limit
  std::int64_t tokens_per_group = 256 * 1024;  ///< prompts are read in groups of at most so many tokens or of one prompt
  bool separate_kernels = false;               ///< steps and short prompts launch each: no kernel of all, no graph
};

/// Makes a model on a device, with a type and with mixers that this program was compiled for; others are a
/// std::runtime_error that lists those.
std::unique_ptr<LanguageModel> make_model(const ModelConfig& config, const WeightSource& weights,
                                          const ModelOptions& options);

}  // namespace jrt_lm
