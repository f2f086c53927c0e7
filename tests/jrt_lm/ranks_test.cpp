// SPDX-License-Identifier: Apache-2.0
// A model on several ranks against the same model on one: threads of the CPU, or as many GPUs as there are.
#if defined(JRT_TEST_CUDA)
#include <cuda_runtime_api.h>
#endif
#include <doctest/doctest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "jrt_lm/generation.hpp"
#include "jrt_lm/model_problem.hpp"
#include "jrt_lm/ranked_model.hpp"
#include "jrt_lm/reference_model.hpp"

namespace jrt_lm::test {
namespace {

/// The last token's logits, on the model's own device: that of several ranks is not that of one.
std::vector<double> logits_of(LanguageModel& model, const Tokens& tokens, std::int32_t slot, std::int64_t prefix,
                              bool continues = false) {
  model.use_device();
  return prefill_last(model, tokens, slot, prefix, continues);
}
std::vector<double> logits_after(LanguageModel& model, std::int32_t token, std::int32_t slot) {
  model.use_device();
  return step_one(model, token, slot);
}

std::unique_ptr<LanguageModel> on_ranks(int ranks, const ModelConfig& config, const WeightSource& weights,
                                        NumberType type) {
  ModelOptions options;
  options.device = device;
  options.type = type;
  options.slots = 3;
  options.threads = 4;
  return make_ranked_model(ranks, config, weights, options);
}

/// Each rank needs a GPU.
bool has_devices([[maybe_unused]] int ranks) {
#if defined(JRT_TEST_CUDA)
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < ranks) {
    std::printf(count < 2 ? "skipped: no CUDA device for several ranks\n" : "left out: %d ranks need as many GPUs\n",
                ranks);
    return false;
  }
#endif
  return true;
}

TEST_CASE("prompts that ranks read together, and what follows them, are those of one rank") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const Tokens prompt = random_tokens(900, 29, 1);
  const Tokens more = random_tokens(611, 29, 2);
  for (const Precision& precision : precisions) {
    CAPTURE(name_of(precision.type));
    const auto one = on_ranks(1, config, weights, precision.type);
    for (const int ranks : {2, 3, 4}) {
      CAPTURE(ranks);
      if (!has_devices(ranks)) {
        continue;
      }
      const auto all = on_ranks(ranks, config, weights, precision.type);
      for (const std::int64_t prefix : {0, 100, 500, 900}) {  // on no rank, the first, some, all
        CAPTURE(prefix);
        CHECK(relative_error(logits_of(*all, prompt, 1, prefix), logits_of(*one, prompt, 1, prefix)) <= precision.bound);
        CHECK(all->tokens_read(1) == 900);
        for (const std::int32_t token : {3, 17, 5}) {
          CHECK(relative_error(logits_after(*all, token, 1), logits_after(*one, token, 1)) <= precision.bound);
        }
        // Goes on from the state, on all ranks; then with a prompt that is too short for them.
        CHECK(relative_error(logits_of(*all, more, 1, 0, true), logits_of(*one, more, 1, 0, true)) <= precision.bound);
        CHECK(all->tokens_read(1) == one->tokens_read(1));
        CHECK(relative_error(logits_of(*all, {1, 2, 3}, 1, 0, true), logits_of(*one, {1, 2, 3}, 1, 0, true)) <=
              precision.bound);
        CHECK(relative_error(logits_after(*all, 7, 1), logits_after(*one, 7, 1)) <= precision.bound);
      }
    }
  }
}

TEST_CASE("a long context that is read twice gives the same tokens on any number of ranks") {
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const std::vector<Request> requests{{random_tokens(2000, 29, 3), {4, 9}}};
  GenerationOptions options;
  options.new_tokens = 24;
  options.reads = 2;
  options.encoder_tokens = 1000;
  const NumberType exact = precisions.front().type;
  const auto expected = generate(*on_ranks(1, config, weights, exact), requests, options, {}).tokens;
  for (const int ranks : {2, 3}) {
    if (!has_devices(ranks)) {
      continue;
    }
    CHECK(generate(*on_ranks(ranks, config, weights, exact), requests, options, {}).tokens == expected);
    GenerationOptions speculative = options;
    speculative.speculate = 5;
    CHECK(generate(*on_ranks(ranks, config, weights, exact), requests, speculative, {}).tokens == expected);
  }
}

TEST_CASE("what one rank refuses, several refuse") {
  if (!has_devices(2)) {
    return;
  }
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  const auto all = on_ranks(2, config, weights, precisions.front().type);
  Tokens prompt = random_tokens(900, 29, 1);
  prompt[600] = 99;
  CHECK_THROWS_AS(logits_of(*all, prompt, 0, 0), std::invalid_argument);
  prompt[600] = 9;
  CHECK_THROWS_AS(logits_of(*all, prompt, 3, 0), std::invalid_argument);
  CHECK_THROWS_AS(logits_of(*all, prompt, 0, 901), std::invalid_argument);
  const auto one = on_ranks(1, config, weights, precisions.front().type);
  CHECK(relative_error(logits_of(*all, prompt, 0, 9), logits_of(*one, prompt, 0, 9)) <= precisions.front().bound);
  CHECK_THROWS_AS(make_ranked_model(0, config, weights, {}), std::invalid_argument);
}

/// What goes wrong on one rank.
enum class Fault { none, before_all_are_ready, in_its_piece, in_a_layer, never_comes };

/// Of a prompt. A GPU loads its kernels in the first.
constexpr int limit_in_seconds = device == DeviceKind::cuda ? 5 : 2;

/// A model with a fault when it is one of several ranks.
class FaultyModel final : public LanguageModel {
 public:
  FaultyModel(std::unique_ptr<LanguageModel> model, const Fault& fault) : model_(std::move(model)), fault_(fault) {}

  [[nodiscard]] const ModelConfig& config() const override { return model_->config(); }
  [[nodiscard]] std::int64_t slots() const override { return model_->slots(); }
  [[nodiscard]] std::int64_t state_bytes() const override { return model_->state_bytes(); }
  [[nodiscard]] std::int64_t device_bytes() const override { return model_->device_bytes(); }
  [[nodiscard]] std::string device_name() const override { return model_->device_name(); }
  [[nodiscard]] std::int64_t tokens_read(std::int32_t slot) const override { return model_->tokens_read(slot); }
  [[nodiscard]] bool stepped_in_one_kernel() const override { return model_->stepped_in_one_kernel(); }
  void synchronize() override { model_->synchronize(); }
  void prefill(std::span<const Prompt> prompts, LogitsOf rows, const Progress& progress) override {
    model_->prefill(prompts, rows, progress);
  }
  void step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    model_->step(tokens, of_slots);
  }
  std::vector<std::int32_t> greedy_steps(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots,
                                         std::int64_t steps) override {
    return model_->greedy_steps(tokens, of_slots, steps);
  }
  void staged_step(std::span<const std::int32_t> tokens, std::span<const std::int32_t> of_slots) override {
    model_->staged_step(tokens, of_slots);
  }
  void commit(std::span<const std::int32_t> accepted) override { model_->commit(accepted); }
  std::vector<std::int32_t> speculative_step(std::span<const std::int32_t> tokens,
                                             std::span<const std::int32_t> of_slots) override {
    return model_->speculative_step(tokens, of_slots);
  }
  [[nodiscard]] std::vector<double> logits() override { return model_->logits(); }
  [[nodiscard]] std::vector<std::int32_t> likeliest() override { return model_->likeliest(); }
  [[nodiscard]] std::int64_t first_not_finite(std::int32_t token, std::int32_t slot) override {
    return model_->first_not_finite(token, slot);
  }
  void fork(std::int32_t from, std::int32_t to) override { model_->fork(from, to); }
  [[nodiscard]] std::vector<std::byte> save(std::int32_t slot) override { return model_->save(slot); }
  void load(std::span<const std::byte> bytes, std::int32_t slot) override { model_->load(bytes, slot); }
  void use_device() override { model_->use_device(); }
  [[nodiscard]] std::unique_ptr<RankGroup> make_group(int ranks) override { return model_->make_group(ranks); }
  void join(RankGroup& group, int rank) override { model_->join(group, rank); }

  void prepare_piece(const RankedPrompt& prompt, int rank) override {
    if (fault_ == Fault::before_all_are_ready) {
      throw std::runtime_error("no memory");
    }
    model_->prepare_piece(prompt, rank);
  }
  void read_piece(const RankedPrompt& prompt, int rank, const std::function<void(std::int64_t)>& enqueued) override {
    if (fault_ == Fault::in_its_piece) {
      throw std::runtime_error("no kernel");
    }
    if (fault_ == Fault::never_comes) {
      std::this_thread::sleep_for(std::chrono::seconds(2 * limit_in_seconds));
      throw std::runtime_error("too late");
    }
    model_->read_piece(prompt, rank, [&](std::int64_t layers) {
      if (fault_ == Fault::in_a_layer && layers == 2) {
        throw std::runtime_error("no layer");
      }
      enqueued(layers);
    });
  }

 private:
  std::unique_ptr<LanguageModel> model_;
  const Fault& fault_;
};

TEST_CASE("a rank that fails, or never comes, is an error for all, and the next prompt is read") {
  const int ranks = device == DeviceKind::cuda ? 2 : 3;
  if (!has_devices(ranks)) {
    return;
  }
  const ModelConfig config = small_config();
  const TestWeights weights(config);
  Fault fault = Fault::none;
  const Fault no_fault = Fault::none;
  std::vector<std::unique_ptr<LanguageModel>> models;
  ModelOptions options;
  options.device = device;
  options.type = precisions.front().type;
  for (options.rank = 0; options.rank < ranks; ++options.rank) {
    models.push_back(
        std::make_unique<FaultyModel>(make_model(config, weights, options), options.rank == 1 ? fault : no_fault));
  }
  const auto all = join_models(std::move(models), limit_in_seconds);
  const Tokens prompt = random_tokens(900, 29, 1);
  const auto expected = logits_of(*all, prompt, 0, 100);
  const auto message = [&] {
    try {
      static_cast<void>(logits_of(*all, prompt, 0, 100));
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string("nothing is thrown");
  };
  const std::pair<Fault, const char*> faults[] = {{Fault::before_all_are_ready, "no memory"},
                                                  {Fault::in_its_piece, "no kernel"},
                                                  {Fault::in_a_layer, "no layer"},
                                                  {Fault::never_comes, ".000000 s; rank 0 has enqueued "}};
  for (const auto& wrong : faults) {
    const char* const what = wrong.second;
    CAPTURE(what);
    fault = wrong.first;
    const std::string said = message();
    CAPTURE(said);
    CHECK(said.find(what) != std::string::npos);
    if (wrong.first == Fault::never_comes) {
      CHECK(said.find("rank 1 has enqueued 0 layers") != std::string::npos);
    }
    fault = Fault::none;
    CHECK(logits_of(*all, prompt, 0, 100) == expected);
  }
}

}  // namespace
}  // namespace jrt_lm::test
