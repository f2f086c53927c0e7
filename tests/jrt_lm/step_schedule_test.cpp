// SPDX-License-Identifier: Apache-2.0
// The stages of a decode step in one kernel: that each reads only what stages before it have written, that none writes what
// others read in it, and that tiles and blocks cover each product once.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "jrt_lm/cpu_device.hpp"
#include "jrt_lm/step_kernel.hpp"
#include "jrt_lm/step_plan.hpp"
#include "jrt_lm/weights.hpp"

namespace jrt_lm::test {
namespace {

/// Bytes of a buffer.
struct Range {
  const char* begin = nullptr;
  const char* end = nullptr;

  Range(const void* data, std::int64_t bytes) : begin(static_cast<const char*>(data)), end(begin + bytes) {}
  [[nodiscard]] bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
  [[nodiscard]] bool covers(const Range& other) const { return begin <= other.begin && other.end <= end; }
};

std::int64_t bytes_of_x(const Stage& stage) {
  return stage.norm != nullptr ? 4 : 2;
}
std::int64_t bytes_of_y(const Stage& stage) {
  return stage.kind == StageKind::adds || stage.kind == StageKind::embed || stage.kind == StageKind::logits ? 4 : 2;
}

ModelConfig config_of(bool rotates) {
  ModelConfig config;
  config.vocabulary = 61;
  config.vocabulary_rows = 64;
  config.width = 64;
  config.hidden = 96;
  config.channels = 128;
  config.heads = 4;
  config.window_kv_heads = 2;
  config.shape = {16, 16, 4, 3};
  config.has_encoder = true;
  config.rotates = rotates;
  config.layers = {MixerKind::convolution, MixerKind::linear, MixerKind::window, MixerKind::convolution};
  return config;
}

/// Stages as StepPlan makes them for a model of mixers that need not be there.
std::vector<Stage> stages_of(const ModelConfig& config, const ModelWeights<CpuDevice, jrt::BFloat16>& weights,
                             const Activations<CpuDevice, jrt::BFloat16>& activations,
                             const LogitRows<CpuDevice, jrt::BFloat16>& logits, std::vector<char>& states) {
  return StepPlan<CpuDevice, jrt::BFloat16>(
             config, weights, [&](std::size_t i) { return static_cast<void*>(states.data() + i); }, activations, logits)
      .stages();
}

void check(const ModelConfig& config) {
  CpuDevice device{ModelOptions{}};
  const RandomWeights source;
  const ModelWeights<CpuDevice, jrt::BFloat16> weights(device, config, source);
  Activations<CpuDevice, jrt::BFloat16> activations;
  LogitRows<CpuDevice, jrt::BFloat16> logits;
  constexpr std::int64_t rows = 3;
  activations.reserve(device, config, rows, 0);
  logits.reserve(device, rows, config);
  std::vector<char> states(config.layers.size());
  std::vector<Stage> stages = stages_of(config, weights, activations, logits, states);
  REQUIRE(stages.front().kind == StageKind::embed);
  REQUIRE(stages.back().kind == StageKind::likeliest);
  const std::vector<Range> buffers{{activations.residual.data(), activations.residual.size() * 4},
                                   {activations.projected.data(), activations.projected.size() * 2},
                                   {activations.mixed.data(), activations.mixed.size() * 2},
                                   {logits.values.data(), logits.values.size() * 4}};
  const auto buffer_with = [&](const Range& range) {
    for (const Range& buffer : buffers) {
      if (buffer.covers(range)) {
        return &buffer;
      }
    }
    FAIL("a stage goes past its buffer");
    return &buffers.front();
  };
  // Columns of each row that stages have written last, and the width of what they wrote.
  std::vector<Range> written;
  for (const Stage& stage : stages) {
    if (stage.x != nullptr) {
      const std::int64_t columns = is_product(stage.kind) ? stage.in : stage.x_columns;
      CHECK(columns == stage.x_columns);
      const Range x(stage.x, rows * stage.x_columns * bytes_of_x(stage));
      static_cast<void>(buffer_with(x));
      CHECK(std::any_of(written.begin(), written.end(), [&](const Range& w) { return w.covers(x); }));
      if (stage.kind != StageKind::likeliest) {
        CHECK_FALSE(x.meets(Range(stage.y, rows * stage.y_columns * bytes_of_y(stage))));
      }
    }
    if (stage.kind == StageKind::likeliest) {
      CHECK(stage.y == logits.likeliest.data());
      continue;
    }
    const Range y(stage.y, rows * stage.y_columns * bytes_of_y(stage));
    static_cast<void>(buffer_with(y));
    if (stage.kind == StageKind::adds) {  // reads what it adds to
      CHECK(std::any_of(written.begin(), written.end(), [&](const Range& w) { return w.covers(y); }));
    }
    // What was there is gone.
    std::erase_if(written, [&](const Range& w) { return w.meets(y); });
    written.push_back(y);
  }
  // Each row of W once, each tile in one block, all blocks as much.
  for (const int blocks : {1, 5, 132}) {
    divide_among_blocks(stages, blocks);
    std::vector<std::int64_t> tiles_of(static_cast<std::size_t>(blocks));
    for (const Stage& stage : stages) {
      if (!is_product(stage.kind)) {
        CHECK(stage.tiles == 0);
        continue;
      }
      std::multiset<int> weight_rows;
      for (int block = 0; block < blocks; ++block) {
        for (int tile = first_tile(stage, block, blocks); tile < stage.tiles; tile += blocks) {
          ++tiles_of[static_cast<std::size_t>(block)];
          for (int part = 0; part < tile_parts(stage.kind); ++part) {
            for (int row = 0; row < tile_outputs; ++row) {
              weight_rows.insert(tile_row(stage, tile, part) + row);
            }
          }
        }
      }
      const bool doubled = stage.kind == StageKind::convolves || stage.kind == StageKind::gates;
      REQUIRE(std::ssize(weight_rows) == (doubled ? 2 : 1) * stage.outputs);
      int next = 0;
      for (const int row : weight_rows) {
        CHECK(row == next++);
      }
    }
    const auto [least, most] = std::minmax_element(tiles_of.begin(), tiles_of.end());
    CHECK(*most - *least <= 1);
  }
}

TEST_CASE("a stage reads what stages before it have written, and products are divided without a gap") {
  check(config_of(true));
  check(config_of(false));
}

TEST_CASE("sizes that the kernel takes") {
  const ModelConfig good = config_of(true);
  CHECK(has_step_sizes(good, 16, 1));
  CHECK_FALSE(has_step_sizes(good, 17, 1));
  CHECK(has_step_sizes(ModelConfig::published("360m"), 1, 2));
  CHECK_FALSE(has_step_sizes(ModelConfig::published("360m"), 1, 1));
  CHECK(has_step_sizes(ModelConfig::published("1.3b"), 1, 4));
  const auto refused = [&](auto change) {
    ModelConfig config = good;
    change(config);
    CHECK_FALSE(has_step_sizes(config, 1, 1));
  };
  refused([](ModelConfig& config) { config.hidden = 48; });
  refused([](ModelConfig& config) { config.width = 80; });
  refused([](ModelConfig& config) { config.channels = 1056; });
  refused([](ModelConfig& config) { config.vocabulary_rows = 63; });
  refused([](ModelConfig& config) { config.shape.head_dim = 24; });
}

}  // namespace
}  // namespace jrt_lm::test
