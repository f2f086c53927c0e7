// SPDX-License-Identifier: Apache-2.0
// An engine's view: prompts of different lengths packed into one call, states in the slots of a pool, padding rows in a
// fixed decode batch, memory and threads of the engine's own.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <jrt/jrt.hpp>
#include <random>
#include <thread>
#include <vector>

using Attention = jrt::PrefixLinearAttention<float, 16, 64>;
using Format = jrt::StateFormatOf<Attention>;

/// How the engine runs things in parallel; two functions make it an executor (jrt/executor.hpp).
struct EngineThreads {
  static int concurrency() { return 2; }

  template <class Function>
  void run(std::int64_t tasks, const Function& function) const {
    const auto every_other = [&](int worker) {
      for (std::int64_t task = worker; task < tasks; task += 2) {
        function(task, worker);
      }
    };
    std::thread second(every_other, 1);
    every_other(0);
    second.join();
  }
};

/// A (batch, token, head, dim) tensor of random numbers.
struct Tensor {
  explicit Tensor(const jrt::TensorShape& s)
      : shape(s), data(static_cast<std::size_t>(s.batch * s.tokens * s.heads * s.dim)) {
    static std::mt19937 generator(1);
    std::generate(data.begin(), data.end(), [] { return std::normal_distribution<float>{}(generator); });
  }
  jrt::TensorView<float> view() { return jrt::view_bthd(data.data(), shape); }

  jrt::TensorShape shape;
  std::vector<float> data;
};

void check(const jrt::Status& status) {
  if (!status) {
    std::fprintf(stderr, "02_serving: %s\n", status.c_str());
    std::exit(1);
  }
}

int main() {
  constexpr std::int64_t heads = 4, rows = 4, steps = 4;
  EngineThreads threads;
  const jrt::Cpu on{threads};

  // Prompts of 40, 7 and 100 tokens, one after the other; their encoder regions of 20, 7 and 64 tokens likewise. The engine
  // gave them the slots 5, 2 and 7 of its pool.
  const std::vector<std::int32_t> lengths{0, 40, 47, 147}, encoder_lengths{0, 20, 27, 91}, slots{5, 2, 7};
  Tensor q({1, 147, heads, 16}), k({1, 147, heads, 16}), v({1, 147, heads, 64}), y({1, 147, heads, 64});
  Tensor k_enc({1, 91, heads, 16}), v_enc({1, 91, heads, 64});
  jrt::StatePool<Format> pool;
  check(jrt::StatePool<Format>::allocate(8, heads, pool));

  jrt::PrefillArgs<Attention> prompts{.query = q.view(), .key = k.view(), .value = v.view()};
  prompts.key_encoder = k_enc.view();
  prompts.value_encoder = v_enc.view();
  prompts.output = y.view();
  prompts.sequences = {.count = 3, .cu_seqlens = lengths.data(), .cu_encoder_seqlens = encoder_lengths.data()};
  prompts.final_state = {pool.view(), slots.data()};
  std::vector<std::byte> workspace(jrt::prefill_workspace_bytes(prompts, on));
  check(jrt::prefill(prompts, {workspace.data(), workspace.size()}, on));
  std::printf("prefilled prompts of 40, 7 and 100 tokens in one call with %zu KiB of workspace\n", workspace.size() / 1024);

  // Decode in a fixed batch of four rows, step s being token s of these tensors. The second request ends after two tokens;
  // its row, like the unused fourth, is padding from then on.
  Tensor q1({rows, steps, heads, 16}), k1({rows, steps, heads, 16}), v1({rows, steps, heads, 64}),
      y1({rows, steps, heads, 64});
  for (std::int64_t s = 0; s < steps; ++s) {
    const std::vector<std::int32_t> batch{5, s < 2 ? 2 : jrt::skip_slot, 7, jrt::skip_slot};
    jrt::DecodeArgs<Attention> token{.query = q1.view().slice_tokens(s, 1), .key = k1.view().slice_tokens(s, 1)};
    token.value = v1.view().slice_tokens(s, 1);
    token.output = y1.view().slice_tokens(s, 1);
    token.source = {pool.view(), batch.data()};
    workspace.resize(std::max(workspace.size(), jrt::decode_workspace_bytes(token, on)));
    check(jrt::decode_step(token, {workspace.data(), workspace.size()}, on));
  }

  // Every request by itself, one thread, one step of several tokens: bitwise the same.
  bool good = true;
  for (std::int64_t r = 0; r < 3; ++r) {
    const auto part = [&](Tensor& tensor, const std::vector<std::int32_t>& offsets) {
      const auto i = static_cast<std::size_t>(r);
      return tensor.view().slice_tokens(offsets[i], offsets[i + 1] - offsets[i]);
    };
    jrt::StatePool<Format> state;
    check(jrt::StatePool<Format>::allocate(1, heads, state));
    Tensor ignored({1, part(q, lengths).tokens, heads, 64});
    jrt::PrefillArgs<Attention> prompt{.query = part(q, lengths), .key = part(k, lengths), .value = part(v, lengths)};
    prompt.key_encoder = part(k_enc, encoder_lengths);
    prompt.value_encoder = part(v_enc, encoder_lengths);
    prompt.output = ignored.view();
    prompt.final_state = {state.view()};
    check(jrt::prefill(prompt, jrt::Cpu{}));
    const std::int64_t decoded = r == 1 ? 2 : steps;
    const auto row = [&](Tensor& tensor) { return tensor.view().slice_batch(r, 1).slice_tokens(0, decoded); };
    Tensor alone({1, decoded, heads, 64});
    jrt::DecodeArgs<Attention> tokens{.query = row(q1), .key = row(k1), .value = row(v1), .output = alone.view()};
    tokens.source = {state.view()};
    check(jrt::decode_step(tokens, jrt::Cpu{}));
    good = good && std::equal(alone.data.begin(), alone.data.end(), row(y1).data);
  }
  std::printf("decoded %lld steps in slots 5, 2 and 7\n", static_cast<long long>(steps));
  std::printf("%s\n", good ? "Batched and separate results are bitwise the same." : "MISMATCH: batching changed results.");
  return good ? 0 : 1;
}
