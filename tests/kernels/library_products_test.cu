// Every kind of product that libraries.cu asks cuBLASLt for, on a host that plays that library
// (played_cublaslt.cc), is the product that matmul.h says. Needs nvcc, but no GPU.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/libraries.h"

namespace nibble::kernels::cuda {
namespace {

// Rows of act or float, small whole numbers, so that every sum is exact.
struct Array {
  Array(DType type, int64_t rows, int64_t stride, int salt) : type(type), stride(stride) {
    values.resize(static_cast<size_t>(rows * stride));
    for (int64_t i = 0; i < rows * stride; ++i)
      Set(i, static_cast<float>((i * 7 + salt * 5) % 11 - 5));
  }
  float At(int64_t row, int64_t column) const {
    const float* at = &values[static_cast<size_t>(row * stride + column)];
    if (type == DType::kF32) return *at;
    const auto* halves = reinterpret_cast<const uint16_t*>(values.data()) + row * stride + column;
    return type == DType::kF16 ? ToFloat(FP16{*halves}) : ToFloat(BF16{*halves});
  }
  void Set(int64_t i, float value) {
    if (type == DType::kF32)
      values[static_cast<size_t>(i)] = value;
    else
      reinterpret_cast<uint16_t*>(values.data())[i] =
          type == DType::kF16 ? ToFP16(value).bits : ToBF16(value).bits;
  }
  DType type;
  int64_t stride;
  std::vector<float> values;  // room for either
};

// Elements that are wrong, or are not C's.
int64_t Wrong(Libraries* library, DType act, int kind, int64_t more, bool as_if) {
  constexpr int64_t kM = 5, kN = 7, kK = 9;
  MatMulArgs args;
  args.m = kM;
  args.n = kN;
  args.k = kK;
  args.b_transposed = (kind & 1) != 0;
  args.c_float = (kind & 2) != 0;
  args.accumulate = (kind & 4) != 0;
  const int64_t b_rows = args.b_transposed ? kK : kN, b_columns = args.b_transposed ? kN : kK;
  const Array a(act, kM, kK + more, 1), b(act, b_rows, b_columns + more, 2);
  Array c(args.c_float ? DType::kF32 : act, kM, kN + 2 * more, 3);
  const Array before = c;
  args.a = a.values.data();
  args.b = b.values.data();
  args.c = c.values.data();
  args.a_stride = a.stride;
  args.b_stride = b.stride;
  args.b_as_if = as_if ? b_columns + 8 : 0;
  args.c_stride = c.stride;
  Context ctx;
  if (!library->CanStride(act, args) || !library->MatMul(&ctx, act, args, nullptr)) return kM * kN;
  int64_t wrong = 0;
  for (int64_t row = 0; row < kM; ++row) {
    for (int64_t column = 0; column < c.stride; ++column) {
      float want = before.At(row, column);
      if (column < kN) {
        if (!args.accumulate) want = 0;
        for (int64_t k = 0; k < kK; ++k)
          want += a.At(row, k) * (args.b_transposed ? b.At(k, column) : b.At(column, k));
      }
      wrong += c.At(row, column) != want;
    }
  }
  return wrong;
}

int Check() {
  std::string why;
  const auto library = Libraries::Open(false, &why);
  if (library == nullptr || library->version() != 1) {
    std::printf("the played library was not loaded: %s\n", why.c_str());
    return 1;
  }
  int products = 0, failed = 0;
  for (const DType act : {DType::kBF16, DType::kF16}) {
    for (int kind = 0; kind < 8; ++kind) {
      for (const int64_t more : {0, 3}) {
        for (const bool as_if : {false, true}) {
          const int64_t wrong = Wrong(library.get(), act, kind, more, as_if);
          ++products;
          failed += wrong != 0;
          if (wrong != 0)
            std::printf("%s kind %d, strides %lld more, %s: %lld elements are wrong\n",
                        act == DType::kF16 ? "fp16" : "bf16", kind, static_cast<long long>(more),
                        as_if ? "as if" : "as is", static_cast<long long>(wrong));
        }
      }
    }
  }
  std::printf("%d products, %d failed\n", products, failed);
  return failed == 0 && products == 64 ? 0 : 1;
}

}  // namespace
}  // namespace nibble::kernels::cuda

int main() { return nibble::kernels::cuda::Check(); }
