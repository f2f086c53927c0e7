// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <jrt/numeric.hpp>
#include <string>

#include "jrt_lm/checkpoint.hpp"
#include "jrt_lm/model_tensors.hpp"

namespace jrt_lm {

/// Where a model's numbers come from: each tensor of `tensors_of`, in the type that the model computes with.
class WeightSource {
 public:
  WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;
  virtual ~WeightSource() = default;

  virtual void read(const TensorSpec& tensor, double* to) const = 0;
  virtual void read(const TensorSpec& tensor, float* to) const = 0;
  virtual void read(const TensorSpec& tensor, jrt::Half* to) const = 0;
  virtual void read(const TensorSpec& tensor, jrt::BFloat16* to) const = 0;
};

/// `read` for the four types through one template of `Derived`.
template <class Derived>
class WeightSourceOf : public WeightSource {
 public:
  void read(const TensorSpec& tensor, double* to) const override { self().fill(tensor, to); }
  void read(const TensorSpec& tensor, float* to) const override { self().fill(tensor, to); }
  void read(const TensorSpec& tensor, jrt::Half* to) const override { self().fill(tensor, to); }
  void read(const TensorSpec& tensor, jrt::BFloat16* to) const override { self().fill(tensor, to); }

 private:
  [[nodiscard]] const Derived& self() const { return static_cast<const Derived&>(*this); }
};

/// The tensors of a checkpoint, whose shapes are checked.
class CheckpointWeights : public WeightSourceOf<CheckpointWeights> {
 public:
  explicit CheckpointWeights(const Checkpoint& checkpoint) : checkpoint_(&checkpoint) {}

  template <class T>
  void fill(const TensorSpec& tensor, T* to) const {
    checkpoint_->tensor(tensor.name, tensor.shape).copy_to(to);
    checkpoint_->release(tensor.name);  // so that a model does not lie in memory twice
  }

 private:
  const Checkpoint* checkpoint_;
};

/// Random numbers of the size that training starts from (normalisers 1, all else uniform with standard deviation 0.02, a
/// convolution's 0.3). A number depends on its tensor's name and its place alone, so that every backend and type has the
/// same model.
class RandomWeights : public WeightSourceOf<RandomWeights> {
 public:
  template <class T>
  void fill(const TensorSpec& tensor, T* to) const {
    const std::int64_t size = tensor.size();
    if (tensor.name.find("norm") != std::string::npos || tensor.name.find("ln_f") != std::string::npos) {
      for (std::int64_t i = 0; i < size; ++i) {
        to[i] = jrt::convert<T>(1.0F);
      }
      return;
    }
    std::uint64_t seed = 0xcbf29ce484222325u;  // FNV-1a of the name
    for (const char character : tensor.name) {
      seed = (seed ^ static_cast<unsigned char>(character)) * 0x100000001b3u;
    }
    const bool convolution = tensor.name.find(".conv.") != std::string::npos;
    const float width = (convolution ? 0.3F : 0.02F) * 3.4641016F;  // a uniform number's range over its deviation
    for (std::int64_t i = 0; i < size; ++i) {
      to[i] = jrt::convert<T>((unit(seed + static_cast<std::uint64_t>(i)) - 0.5F) * width);
    }
  }

 private:
  /// In [0, 1): SplitMix64 (Steele, Lea, Flood 2014) of a counter.
  static float unit(std::uint64_t counter) {
    std::uint64_t z = counter * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-24F;
  }
};

}  // namespace jrt_lm
