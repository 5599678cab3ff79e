// cuBLASLt on the host, by its documentation and for the products we ask for alone: column-major
// matrices, D = alpha op(A) op(B) + beta C. Built under the library's own name, it shows
// library_products_test.cu that shapes, orders and leading dimensions are told as the library wants
// them. What it knows of no use of ours it refuses.
#include <cublasLt.h>

#include <cstdint>
#include <cstring>

#include "kernels/bf16.h"
#include "kernels/fp16.h"

namespace {

using nibble::kernels::BF16;
using nibble::kernels::FP16;

struct Product {
  bool plain = false;  // computes and scales in fp32
  cublasOperation_t left = CUBLAS_OP_N, right = CUBLAS_OP_N;
};
struct Matrix {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t stride;  // from a column to the next
};

Product& Of(cublasLtMatmulDesc_t product) { return *reinterpret_cast<Product*>(product); }
const Matrix& Of(cublasLtMatrixLayout_t matrix) { return *reinterpret_cast<const Matrix*>(matrix); }

uint64_t RowsOf(const Matrix& of, cublasOperation_t op) {
  return op == CUBLAS_OP_N ? of.rows : of.columns;
}
uint64_t ColumnsOf(const Matrix& of, cublasOperation_t op) {
  return op == CUBLAS_OP_N ? of.columns : of.rows;
}

float Get(const void* data, const Matrix& of, cublasOperation_t op, uint64_t row, uint64_t column) {
  if (op != CUBLAS_OP_N) return Get(data, of, CUBLAS_OP_N, column, row);
  const uint64_t at = row + column * static_cast<uint64_t>(of.stride);
  if (of.type == CUDA_R_32F) return static_cast<const float*>(data)[at];
  if (of.type == CUDA_R_16F) return nibble::kernels::ToFloat(static_cast<const FP16*>(data)[at]);
  return nibble::kernels::ToFloat(static_cast<const BF16*>(data)[at]);
}
void Put(void* data, const Matrix& of, uint64_t row, uint64_t column, float value) {
  const uint64_t at = row + column * static_cast<uint64_t>(of.stride);
  if (of.type == CUDA_R_32F)
    static_cast<float*>(data)[at] = value;
  else if (of.type == CUDA_R_16F)
    static_cast<FP16*>(data)[at] = nibble::kernels::ToFP16(value);
  else
    static_cast<BF16*>(data)[at] = nibble::kernels::ToBF16(value);
}

bool Fits(const Product& p, const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d) {
  const bool shapes = ColumnsOf(a, p.left) == RowsOf(b, p.right) && d.rows == RowsOf(a, p.left) &&
                      d.columns == ColumnsOf(b, p.right) && c.rows == d.rows &&
                      c.columns == d.columns;
  const bool types = a.type == b.type && (a.type == CUDA_R_16F || a.type == CUDA_R_16BF) &&
                     c.type == d.type && (c.type == a.type || c.type == CUDA_R_32F);
  return p.plain && shapes && types;
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static int state;
  *handle = reinterpret_cast<cublasLtHandle_t>(&state);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion() { return 1; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  auto* made = new Product;
  made->plain = compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F;
  *product = reinterpret_cast<cublasLtMatmulDesc_t>(made);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete &Of(product);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void* value, size_t bytes) {
  if (bytes != sizeof(int32_t) ||
      (what != CUBLASLT_MATMUL_DESC_TRANSA && what != CUBLASLT_MATMUL_DESC_TRANSB))
    return CUBLAS_STATUS_INVALID_VALUE;
  auto& op = what == CUBLASLT_MATMUL_DESC_TRANSA ? Of(product).left : Of(product).right;
  std::memcpy(&op, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* matrix, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t stride) {
  if (stride < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *matrix = reinterpret_cast<cublasLtMatrixLayout_t>(new Matrix{type, rows, columns, stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t matrix) {
  delete &Of(matrix);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = nullptr;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) {
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void*, size_t bytes) {
  const size_t wanted = what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4;
  return bytes == wanted ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t*,
                                       cublasLtMatmulHeuristicResult_t* result) {
  *result = {};
  return Fits(Of(product), Of(a), Of(b), Of(c), Of(d)) ? CUBLAS_STATUS_SUCCESS
                                                       : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* count) {
  *count = 1;
  return cublasLtMatmulAlgoCheck(handle, product, a, b, c, d, nullptr, results);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void* alpha,
                              const void* a_data, cublasLtMatrixLayout_t a_of, const void* b_data,
                              cublasLtMatrixLayout_t b_of, const void* beta, const void* c_data,
                              cublasLtMatrixLayout_t c_of, void* d_data,
                              cublasLtMatrixLayout_t d_of, const cublasLtMatmulAlgo_t*, void*,
                              size_t, cudaStream_t) {
  const Product& p = Of(product);
  const Matrix &a = Of(a_of), &b = Of(b_of), &c = Of(c_of), &d = Of(d_of);
  if (!Fits(p, a, b, c, d)) return CUBLAS_STATUS_INVALID_VALUE;
  float scale = 0, keep = 0;
  std::memcpy(&scale, alpha, sizeof scale);
  std::memcpy(&keep, beta, sizeof keep);
  for (uint64_t column = 0; column < d.columns; ++column) {
    for (uint64_t row = 0; row < d.rows; ++row) {
      float sum = 0;
      for (uint64_t depth = 0; depth < ColumnsOf(a, p.left); ++depth)
        sum += Get(a_data, a, p.left, row, depth) * Get(b_data, b, p.right, depth, column);
      // With a factor of 0 what is there is not read.
      const float before = keep != 0 ? keep * Get(c_data, c, CUBLAS_OP_N, row, column) : 0;
      Put(d_data, d, row, column, scale * sum + before);
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
