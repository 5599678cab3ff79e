// The vendor's libraries, behind Context::libraries of a cuda backend. Loaded with dlopen when they
// are opened, so that a program starts where they are not.
//
// Determinism. For every shape one algorithm is asked of cuBLASLt's heuristics, once, with a fixed
// workspace and without reductions in place (which add in whatever order blocks finish); it is kept
// as long as this object. The same library on the same kind of device answers the same.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "kernels/cuda/matmul.h"

namespace nibble::kernels::cuda {

class Libraries {
 public:
  // Needs a current device. Null: `why` says in a sentence what is missing, and everything works
  // without. `tells`: what is asked and answered goes to stderr, a line a shape.
  static std::unique_ptr<Libraries> Open(bool tells, std::string* why);
  ~Libraries();
  Libraries(const Libraries&) = delete;
  Libraries& operator=(const Libraries&) = delete;

  // False when there is no algorithm for this shape, or it turns out that the library will not run it;
  // nothing has happened then.
  bool MatMul(Context* ctx, DType act, const MatMulArgs& args, void* scratch);

  // Whether the algorithm for args.b_as_if can do args.b_stride; when there is none for b_as_if, our own
  // product does either.
  bool CanStride(DType act, const MatMulArgs& args);

  // cuBLASLt's version number, for the numerics id and the results file.
  int64_t version() const { return version_; }

 private:
  // What an algorithm depends on.
  using Shape = std::array<int64_t, 10>;
  struct Plan {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t left = nullptr, right = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm;
    bool found = false;
    bool strides = true;  // the algorithm is fine with b_stride
  };
  struct Functions;

  Libraries() = default;
  Plan* Find(DType act, const MatMulArgs& args);
  void Choose(Plan* plan, DType act, const MatMulArgs& args, uint32_t alignment);
  void Tell(const MatMulArgs& args, uint32_t alignment, const std::string& answer) const;

  void* library_ = nullptr;
  std::unique_ptr<Functions> functions_;
  cublasLtHandle_t handle_ = nullptr;
  int64_t version_ = 0;
  bool tells_ = false;
  std::map<Shape, Plan> plans_;
};

}  // namespace nibble::kernels::cuda
