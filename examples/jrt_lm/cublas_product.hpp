// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <type_traits>

namespace jrt_lm {

/// y = x Wᵀ + bias, or y += x Wᵀ + bias, by its dimensions and types; sums in float (double for double).
struct ProductShape {
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t x_columns = 0;  ///< from a row of x to the next
  std::int64_t y_columns = 0;
  cudaDataType_t input = CUDA_R_32F;   ///< of x and W
  cudaDataType_t output = CUDA_R_32F;  ///< of y and bias
  bool has_bias = false;
  bool adds = false;

  friend auto operator<=>(const ProductShape&, const ProductShape&) = default;
};

/// Matrix products of cuBLASLt. Each shape is planned once; after that a call only launches, so that it can be captured.
/// Errors are std::runtime_error.
class CublasProduct {
 public:
  /// `workspace` is device memory of the caller's.
  CublasProduct(void* workspace, std::size_t workspace_bytes);

  void run(const ProductShape& shape, const void* x, const void* weight, const void* bias, void* y, cudaStream_t stream);

 private:
  struct Plan;
  struct DestroyHandle {
    void operator()(cublasLtHandle_t handle) const { cublasLtDestroy(handle); }
  };

  Plan& planned(const ProductShape& shape);

  std::unique_ptr<std::remove_pointer_t<cublasLtHandle_t>, DestroyHandle> handle_{};
  void* workspace_;
  std::size_t workspace_bytes_;
  std::map<ProductShape, std::shared_ptr<Plan>> plans_{};
};

}  // namespace jrt_lm
