// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace jrt_lm {

/// The three mixers of JRT-RNN and Based.
enum class MixerKind {
  convolution,  ///< BaseConv: projection, gated short convolution, projection
  linear,       ///< prefix linear attention, or without an encoder region Based's linear attention
  window,       ///< sliding-window attention with rotary embedding
};

/// "convolution", "linear attention", "window attention"
const char* name_of(MixerKind kind);

/// What kernels are compiled for; everything else of a model is known at run time only.
struct KernelShape {
  int feature_dim = 16;   ///< d of linear attention
  int head_dim = 64;      ///< dv of linear attention, d of the window
  int left_window = 128;  ///< L: keys to the left of a query
  int kernel_width = 3;   ///< K of the convolution

  friend bool operator==(const KernelShape&, const KernelShape&) = default;
};

/// A hybrid model in the authors' configuration: RMSNorm and a mixer, RMSNorm and a SwiGLU MLP, both added to the residual
/// stream, `layers.size()` times; tied embeddings; no position embeddings but the windows' rotation.
struct ModelConfig {
  std::string source{};  ///< for messages: the file, or a name
  std::int64_t vocabulary = 0;
  std::int64_t vocabulary_rows = 0;  ///< of the embedding table: the vocabulary, padded
  std::int64_t width = 0;
  std::int64_t hidden = 0;        ///< of the MLP
  std::int64_t least_hidden = 0;  ///< what `hidden` was rounded up from; 0: `hidden` stands, whatever the tensors say
  std::int64_t channels = 0;      ///< of the convolution
  std::int64_t heads = 0;
  std::int64_t window_kv_heads = 0;
  KernelShape shape{};
  std::int64_t encoder_tokens = 0;  ///< M, the encoder region that the model was trained with; 0: plainly causal
  bool has_encoder = false;         ///< whether linear attention has keys and values of its own for an encoder region
  double norm_epsilon = 1e-5;
  double window_scale = 0;   ///< of the scores
  bool rotates = true;       ///< whether windows rotate queries and keys
  double rotary_base = 1e4;  ///< of the rotary embedding
  /// Whether projections and convolutions have a bias; where the configuration does not say, whether there is such a
  /// tensor.
  std::optional<bool> convolution_projection_bias{};
  std::optional<bool> convolution_bias{};
  std::optional<bool> linear_output_bias{};
  std::optional<bool> window_input_bias{};
  std::optional<bool> window_output_bias{};
  std::optional<bool> mlp_input_bias{};
  std::optional<bool> mlp_output_bias{};
  std::vector<MixerKind> layers{};

  /// Whether any layer has this mixer.
  [[nodiscard]] bool has(MixerKind kind) const;

  /// Reads the authors' `config.json`. Errors are std::runtime_error: one line naming the file, the key and both values.
  static ModelConfig from_file(const std::string& path);
  /// The same from text; `source` stands in messages.
  static ModelConfig from_json(const std::string& text, const std::string& source);
  /// The published layouts "360m" and "1.3b".
  static ModelConfig published(const std::string& name);
};

}  // namespace jrt_lm
