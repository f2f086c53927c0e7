// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include "jrt/detail/abi.hpp"
#include "jrt/detail/cuda/core/threads.cuh"
#include "jrt/detail/cuda/core/vector.cuh"
#include "jrt/detail/cuda/window/exponential.cuh"
#include "jrt/detail/cuda/window/sequence.cuh"
#include "jrt/detail/cuda/window/step_layout.cuh"
#include "jrt/detail/integer.hpp"
#include "jrt/detail/shared/window/online_softmax.hpp"

namespace jrt::detail::cuda {
inline namespace JRT_DETAIL_CUDA_ABI {

/// One query of the decode step, by all threads of a block, whose shared memory has a copy of the cache. As in
/// `WindowQuery` a group of lanes takes one key at a time.
template <WindowConfig Config, class Part = WholeBlock<WindowStepLayout<Config>::threads>>
class WindowStepQuery {
 public:
  using Layout = WindowStepLayout<Config, Part::threads>;
  using Element = typename Config::Element;
  using Format = StateFormatOf<Config>;
  using T = ComputeType<Element>;
  static constexpr int vector = Layout::Query::vector;
  static constexpr int parts = Layout::Query::parts;
  static constexpr int lanes = Layout::Query::lanes;
  using Numbers = StoredNumbers<Element, vector>;
  using Exponential = std::conditional_t<sizeof(Element) == 2, FastFiniteExponential, FiniteExponential<T>>;
  using Softmax = OnlineSoftmax<T, Exponential>;

  struct Shared {
    T maxima[Layout::warps];
    T denominators[Layout::warps];
    T values[Layout::warps][Config::value_dim];
  };

  __device__ WindowStepQuery(const WindowCall<Config>& call, Shared& shared, const Part& part = {})
      : part_(part), call_(call), shared_(shared) {}

  /// The output of a query at a position, over the first `rows` rows of the ring in `buffer`.
  __device__ void run(const Element* buffer, int rows, const Element* query, std::int64_t position, Element* output) {
    T numbers[parts][vector];
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      read_query(numbers[part], query, position, column(part));
    }
    T values[parts][vector] = {};
    Softmax softmax;
    for (int first = group(); first - group() < rows; first += Layout::rounds * Layout::groups) {
      T scores[Layout::rounds];
      T most = softmax.maximum;
#pragma unroll
      for (int r = 0; r < Layout::rounds; ++r) {
        const int n = first + r * Layout::groups;
        // All lanes take part; a row past the last is read, within the ring, and left out.
        const T score = dot(numbers, buffer + smaller(n, Format::rows - 1) * Config::head_dim);
        scores[r] = n < rows ? score : Exponential::lowest;
        most = most < scores[r] ? scores[r] : most;
      }
      // The maximum is the whole warp's, so each warp has only one row of values left to merge.
#pragma unroll
      for (int distance = lanes; distance < 32; distance *= 2) {
        const T other = __shfl_xor_sync(~0u, most, distance);
        most = most < other ? other : most;
      }
      scale(values, softmax.absorb(most));
#pragma unroll
      for (int r = 0; r < Layout::rounds; ++r) {
        const int n = first + r * Layout::groups;
        if (n < rows) {
          const T weight = softmax.weight(scores[r]);
          softmax.denominator += weight;
          add_weighted(values, weight, buffer + Format::value_offset + n * Config::value_dim);
        }
      }
    }
    finish(values, softmax, output);
  }

 private:
  [[nodiscard]] __device__ int thread() const {
    return part_.rank();
  }
  [[nodiscard]] __device__ int group() const {
    return thread() / lanes;
  }
  [[nodiscard]] __device__ int column(int part) const {
    return (part * lanes + thread() % lanes) * vector;
  }

  __device__ void read_query(T (&numbers)[vector], const Element* query, std::int64_t position, int first) const {
    if constexpr (Config::Rotary::rotates) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        numbers[c] = first + c < Config::head_dim ? rotated_value(call_.rotary, query, position, first + c) : T(0);
      }
    } else {
      Numbers stored;
      if (first < Config::head_dim) {
        stored.load(query + first, true);
      }
      stored.get(numbers);
    }
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      numbers[c] *= static_cast<T>(call_.scale);
    }
  }
  /// Score of a query and a key, the same in all lanes of a group.
  __device__ T dot(const T (&query)[parts][vector], const Element* key) const {
    T dot = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      if (column(part) < Config::head_dim) {
        Numbers stored;
        stored.load(key + column(part), true);
        T numbers[vector];
        stored.get(numbers);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          dot += query[part][c] * numbers[c];
        }
      }
    }
#pragma unroll
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      dot += __shfl_xor_sync(~0u, dot, distance);
    }
    return dot;
  }
  static __device__ void scale(T (&values)[parts][vector], T factor) {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
#pragma unroll
      for (int c = 0; c < vector; ++c) {
        values[part][c] *= factor;
      }
    }
  }
  __device__ void add_weighted(T (&values)[parts][vector], T weight, const Element* value) const {
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      if (column(part) < Config::value_dim) {
        Numbers stored;
        stored.load(value + column(part), true);
        T numbers[vector];
        stored.get(numbers);
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          values[part][c] += weight * numbers[c];
        }
      }
    }
  }

  /// Merges groups and warps.
  __device__ void finish(T (&values)[parts][vector], const Softmax& of_lanes, Element* output) {
    const int warp = thread() / 32;
    T denominator = of_lanes.denominator;
#pragma unroll
    for (int distance = lanes; distance < 32; distance *= 2) {
      denominator += __shfl_xor_sync(~0u, denominator, distance);
#pragma unroll
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          values[part][c] += __shfl_xor_sync(~0u, values[part][c], distance);
        }
      }
    }
    if (thread() % 32 == 0) {
      shared_.maxima[warp] = of_lanes.maximum;
      shared_.denominators[warp] = denominator;
    }
    if (thread() % 32 < lanes) {
#pragma unroll
      for (int part = 0; part < parts; ++part) {
#pragma unroll
        for (int c = 0; c < vector; ++c) {
          if (column(part) < Config::value_dim) {
            shared_.values[warp][column(part) + c] = values[part][c];
          }
        }
      }
    }
    part_.sync();
    T most = Exponential::lowest;
#pragma unroll
    for (int w = 0; w < Layout::warps; ++w) {
      most = most < shared_.maxima[w] ? shared_.maxima[w] : most;
    }
    for (int c = thread(); c < Config::value_dim; c += Layout::threads) {
      Softmax softmax{most};
      T value = 0;
#pragma unroll
      for (int w = 0; w < Layout::warps; ++w) {
        const T factor = softmax.merge({shared_.maxima[w], shared_.denominators[w]});
        value += factor * shared_.values[w][c];
      }
      output[c] = convert<Element>(softmax.finish(value));
    }
  }

  [[no_unique_address]] Part part_;
  const WindowCall<Config>& call_;
  Shared& shared_;
};

}  // namespace JRT_DETAIL_CUDA_ABI
}  // namespace jrt::detail::cuda
