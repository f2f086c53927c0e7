// SPDX-License-Identifier: Apache-2.0
#include "jrt_lm/cublas_product.hpp"

#include <stdexcept>
#include <string>
#include <utility>

namespace jrt_lm {

namespace {

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string("cuBLASLt, ") + what + ": " + cublasLtGetStatusString(status));
  }
}

/// A descriptor of cuBLASLt's, which are all made and destroyed alike.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (handle_ != nullptr) {
      destroy(handle_);
    }
  }
  Handle* made() { return &handle_; }
  [[nodiscard]] Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

}  // namespace

struct CublasProduct::Plan {
  Operation operation{};
  Layout weight{};
  Layout x{};
  Layout y{};
  cublasLtMatmulAlgo_t algorithm{};
  bool is_double = false;
};

CublasProduct::CublasProduct(void* workspace, std::size_t workspace_bytes)
    : workspace_(workspace), workspace_bytes_(workspace_bytes) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "start");
  handle_.reset(handle);
}

CublasProduct::Plan& CublasProduct::planned(const ProductShape& shape) {
  if (const auto found = plans_.find(shape); found != plans_.end()) {
    return *found->second;
  }
  auto plan = std::make_shared<Plan>();
  plan->is_double = shape.input == CUDA_R_64F;
  const cublasComputeType_t compute = plan->is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  check(cublasLtMatmulDescCreate(plan->operation.made(), compute, plan->is_double ? CUDA_R_64F : CUDA_R_32F), "operation");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulDescSetAttribute(plan->operation.get(), attribute, &value, sizeof value), "attribute");
  };
  // Its matrices are column-major: row-major W (out, in) is Wᵀ there, and yᵀ = W xᵀ is what is asked for.
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (shape.has_bias) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
  }
  const auto extent = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  check(cublasLtMatrixLayoutCreate(plan->weight.made(), shape.input, extent(shape.in), extent(shape.out), shape.in),
        "layout");
  check(cublasLtMatrixLayoutCreate(plan->x.made(), shape.input, extent(shape.in), extent(shape.rows), shape.x_columns),
        "layout");
  check(cublasLtMatrixLayoutCreate(plan->y.made(), shape.output, extent(shape.out), extent(shape.rows), shape.y_columns),
        "layout");
  Preference preference;
  check(cublasLtMatmulPreferenceCreate(preference.made()), "preference");
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes_,
                                             sizeof workspace_bytes_),
        "preference");
  // The default assumes pointers to multiples of 256 bytes, but a product may begin at any row of its matrices.
  const auto set_alignment = [&](cublasLtMatmulPreferenceAttributes_t attribute, std::int64_t columns,
                                 cudaDataType_t type) {
    const std::int64_t element = type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
    const auto bytes = static_cast<std::uint32_t>(columns * element % 16 == 0 ? 16 : element);
    check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &bytes, sizeof bytes), "preference");
  };
  set_alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.in, shape.input);
  set_alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.x_columns, shape.input);
  set_alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.y_columns, shape.output);
  set_alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.y_columns, shape.output);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle_.get(), plan->operation.get(), plan->weight.get(), plan->x.get(),
                                       plan->y.get(), plan->y.get(), preference.get(), 1, &result, &found),
        "choice of an algorithm");
  if (found == 0) {
    throw std::runtime_error("cuBLASLt has no algorithm for a product of " + std::to_string(shape.rows) + " rows of " +
                             std::to_string(shape.in) + " numbers to " + std::to_string(shape.out));
  }
  plan->algorithm = result.algo;
  return *(plans_[shape] = std::move(plan));
}

void CublasProduct::run(const ProductShape& shape, const void* x, const void* weight, const void* bias, void* y,
                        cudaStream_t stream) {
  if (shape.rows == 0) {
    return;
  }
  Plan& plan = planned(shape);
  if (shape.has_bias) {
    check(cublasLtMatmulDescSetAttribute(plan.operation.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias),
          "bias");
  }
  const float one = 1;
  const float float_beta = shape.adds ? 1.0F : 0.0F;
  const double double_one = 1;
  const double double_beta = shape.adds ? 1.0 : 0.0;
  check(cublasLtMatmul(handle_.get(), plan.operation.get(), plan.is_double ? static_cast<const void*>(&double_one) : &one,
                       weight, plan.weight.get(), x, plan.x.get(),
                       plan.is_double ? static_cast<const void*>(&double_beta) : &float_beta, y, plan.y.get(), y,
                       plan.y.get(), &plan.algorithm, workspace_, workspace_bytes_, stream),
        "product");
}

}  // namespace jrt_lm
