#include <dlfcn.h>

#include <cstdio>

#include "kernels/cuda/libraries.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/workspace.h"

namespace nibble::kernels::cuda {

struct Libraries::Functions {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetVersion) GetVersion;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmulAlgoCheck) MatmulAlgoCheck;
  decltype(&cublasLtMatmul) Matmul;

  // The name of the first that is missing, or null.
  const char* Load(void* library) {
    const char* missing = nullptr;
    const auto load = [&](const char* name, auto* function) {
      *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
      if (*function == nullptr && missing == nullptr) missing = name;
    };
    load("cublasLtCreate", &Create);
    load("cublasLtDestroy", &Destroy);
    load("cublasLtGetVersion", &GetVersion);
    load("cublasLtMatmulDescCreate", &MatmulDescCreate);
    load("cublasLtMatmulDescDestroy", &MatmulDescDestroy);
    load("cublasLtMatmulDescSetAttribute", &MatmulDescSetAttribute);
    load("cublasLtMatrixLayoutCreate", &MatrixLayoutCreate);
    load("cublasLtMatrixLayoutDestroy", &MatrixLayoutDestroy);
    load("cublasLtMatmulPreferenceCreate", &MatmulPreferenceCreate);
    load("cublasLtMatmulPreferenceDestroy", &MatmulPreferenceDestroy);
    load("cublasLtMatmulPreferenceSetAttribute", &MatmulPreferenceSetAttribute);
    load("cublasLtMatmulAlgoGetHeuristic", &MatmulAlgoGetHeuristic);
    load("cublasLtMatmulAlgoCheck", &MatmulAlgoCheck);
    load("cublasLtMatmul", &Matmul);
    return missing;
  }
};

std::unique_ptr<Libraries> Libraries::Open(bool tells, std::string* why) {
  std::unique_ptr<Libraries> libraries(new Libraries);
  libraries->tells_ = tells;
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  for (const std::string& path : {name, "/usr/local/cuda/lib64/" + name}) {
    libraries->library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (libraries->library_ != nullptr) break;
  }
  if (libraries->library_ == nullptr) {
    const char* reason = dlerror();
    *why = name + " cannot be loaded (" + (reason == nullptr ? "?" : reason) +
           "); products are our own, and slower";
    return nullptr;
  }
  libraries->functions_ = std::make_unique<Functions>();
  if (const char* missing = libraries->functions_->Load(libraries->library_); missing != nullptr) {
    *why = name + " has no " + missing + "; products are our own, and slower";
    return nullptr;
  }
  if (libraries->functions_->Create(&libraries->handle_) != CUBLAS_STATUS_SUCCESS) {
    libraries->handle_ = nullptr;
    *why = name + " does not start on this device; products are our own, and slower";
    return nullptr;
  }
  libraries->version_ = static_cast<int64_t>(libraries->functions_->GetVersion());
  return libraries;
}

Libraries::~Libraries() {
  for (auto& [shape, plan] : plans_) {
    if (plan.product != nullptr) functions_->MatmulDescDestroy(plan.product);
    for (cublasLtMatrixLayout_t layout : {plan.left, plan.right, plan.out})
      if (layout != nullptr) functions_->MatrixLayoutDestroy(layout);
  }
  if (handle_ != nullptr) functions_->Destroy(handle_);
  // The library stays loaded: it has threads and state of its own that do not like to be unloaded.
}

// The library is column-major: it computes C^T = op(B) A^T, with B the left and A the right
// operand.
void Libraries::Choose(Plan* plan, DType act, const MatMulArgs& args, uint32_t alignment) {
  const Functions& f = *functions_;
  const cudaDataType_t type = act == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
  const cudaDataType_t out_type = args.c_float ? CUDA_R_32F : type;
  const auto m = static_cast<uint64_t>(args.m), n = static_cast<uint64_t>(args.n),
             k = static_cast<uint64_t>(args.k);
  bool ok = f.MatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
  const cublasOperation_t left_op = args.b_transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  ok = ok && f.MatmulDescSetAttribute(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &left_op, sizeof left_op) ==
                 CUBLAS_STATUS_SUCCESS;
  const auto layout = [&](cublasLtMatrixLayout_t* to, cudaDataType_t of, uint64_t rows, uint64_t columns,
                          int64_t stride) {
    ok = ok && f.MatrixLayoutCreate(to, of, rows, columns, stride) == CUBLAS_STATUS_SUCCESS;
  };
  const int64_t b_chosen = args.b_as_if != 0 ? args.b_as_if : args.b_stride;
  layout(&plan->left, type, args.b_transposed ? n : k, args.b_transposed ? k : n, b_chosen);
  layout(&plan->right, type, k, m, args.a_stride);
  layout(&plan->out, out_type, n, m, args.c_stride);
  cublasLtMatmulPreference_t preference = nullptr;
  ok = ok && f.MatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS;
  if (!ok) return;
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    ok =
        ok && f.MatmulPreferenceSetAttribute(preference, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
  };
  const auto bytes = static_cast<uint64_t>(cuda_workspace::kLibraryBytes);
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // or none; not in place
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  if (ok)
    status = f.MatmulAlgoGetHeuristic(handle_, plan->product, plan->left, plan->right, plan->out, plan->out,
                                      preference, 1, &result, &found);
  f.MatmulPreferenceDestroy(preference);
  plan->found = status == CUBLAS_STATUS_SUCCESS && found == 1 && result.state == CUBLAS_STATUS_SUCCESS;
  plan->algorithm = result.algo;
  if (tells_)
    Tell(args, alignment,
         plan->found ? std::to_string(result.workspaceSize) + " bytes of workspace, " +
                           std::to_string(result.wavesCount) + " waves"
                     : "no algorithm (" + std::to_string(status) + "), so our own");
  if (!plan->found || b_chosen == args.b_stride) return;
  f.MatrixLayoutDestroy(plan->left);
  plan->left = nullptr;
  layout(&plan->left, type, args.b_transposed ? n : k, args.b_transposed ? k : n, args.b_stride);
  cublasLtMatmulHeuristicResult_t checked{};
  plan->strides = ok &&
                  f.MatmulAlgoCheck(handle_, plan->product, plan->left, plan->right, plan->out, plan->out,
                                    &plan->algorithm, &checked) == CUBLAS_STATUS_SUCCESS &&
                  checked.workspaceSize <= bytes;
}

void Libraries::Tell(const MatMulArgs& args, uint32_t alignment, const std::string& answer) const {
  std::fprintf(stderr,
               "cublasLt m=%lld n=%lld k=%lld strides %lld %lld (as if %lld) %lld%s%s%s, aligned to %u: %s\n",
               static_cast<long long>(args.m), static_cast<long long>(args.n), static_cast<long long>(args.k),
               static_cast<long long>(args.a_stride), static_cast<long long>(args.b_stride),
               static_cast<long long>(args.b_as_if), static_cast<long long>(args.c_stride),
               args.b_transposed ? " b transposed" : "", args.c_float ? " float" : "",
               args.accumulate ? " accumulates" : "", alignment, answer.c_str());
}

Libraries::Plan* Libraries::Find(DType act, const MatMulArgs& args) {
  const auto address = reinterpret_cast<uintptr_t>(args.a) | reinterpret_cast<uintptr_t>(args.b) |
                       reinterpret_cast<uintptr_t>(args.c);
  const bool aligned = address % 16 == 0;
  const Shape shape = {args.m,
                       args.n,
                       args.k,
                       args.a_stride,
                       args.b_stride,
                       args.b_as_if != 0 ? args.b_as_if : args.b_stride,
                       args.c_stride,
                       (args.b_transposed ? 1 : 0) | (args.c_float ? 2 : 0) | (args.accumulate ? 4 : 0),
                       static_cast<int64_t>(act),
                       aligned ? 16 : 2};
  const auto [at, is_new] = plans_.try_emplace(shape);
  if (is_new) Choose(&at->second, act, args, aligned ? 16 : args.c_float && address % 4 == 0 ? 4 : 2);
  return &at->second;
}

bool Libraries::CanStride(DType act, const MatMulArgs& args) {
  const Plan* plan = Find(act, args);
  return !plan->found || plan->strides;
}

bool Libraries::MatMul(Context* ctx, DType act, const MatMulArgs& args, void* scratch) {
  Plan* plan = Find(act, args);
  if (!plan->found) return false;
  const float alpha = 1, beta = args.accumulate ? 1 : 0;
  const cublasStatus_t status =
      functions_->Matmul(handle_, plan->product, &alpha, args.b, plan->left, args.a, plan->right, &beta,
                         args.c, plan->out, args.c, plan->out, &plan->algorithm, scratch,
                         static_cast<size_t>(cuda_workspace::kLibraryBytes), Stream(ctx));
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE ||
      status == CUBLAS_STATUS_ARCH_MISMATCH) {
    plan->found = false;  // now and ever after, so that a shape's sums stay the same
    if (tells_) Tell(args, 0, "refused when called (" + std::to_string(status) + "), so our own");
    return false;
  }
  if (status != CUBLAS_STATUS_SUCCESS && ctx->error == nullptr) {
    static thread_local char text[128];  // that of the first error, which is kept
    std::snprintf(text, sizeof text, "cuBLASLt failed to start a product of %lld x %lld x %lld: status %d",
                  static_cast<long long>(args.m), static_cast<long long>(args.n),
                  static_cast<long long>(args.k), static_cast<int>(status));
    ctx->error = text;
  }
  return true;
}

namespace {

// Has the library load its code, which takes memory of the device: products of zeros of every kind there is.
void Warm(Context* ctx, Libraries* libraries, DType act) {
  constexpr int64_t kSize = 512, kBytes = 4 * kSize * kSize;
  void* memory = nullptr;
  if (!NoteError(ctx, cudaMalloc(&memory, 3 * kBytes + cuda_workspace::kLibraryBytes))) return;
  FillBytes(ctx, memory, 0, 3 * kBytes);
  char* at = static_cast<char*>(memory);
  MatMulArgs args;
  args.m = args.n = args.k = kSize;
  args.a = at;
  args.b = at + kBytes;
  args.c = at + 2 * kBytes;
  args.a_stride = args.b_stride = args.c_stride = kSize;
  for (int kind = 0; kind < 8; ++kind) {
    args.b_transposed = (kind & 1) != 0;
    args.c_float = (kind & 2) != 0;
    args.accumulate = (kind & 4) != 0;
    libraries->MatMul(ctx, act, args, at + 3 * kBytes);
  }
  NoteError(ctx, cudaStreamSynchronize(Stream(ctx)));
  NoteError(ctx, cudaFree(memory));
}

}  // namespace
}  // namespace nibble::kernels::cuda

namespace nibble::kernels {

int64_t OpenCudaLibraries(Context* ctx, DType act, CudaProducts products, std::string* why) {
  if (products == CudaProducts::kOwn) {
    *why = "products are our own, as asked";
    return 0;
  }
  std::unique_ptr<cuda::Libraries> libraries = cuda::Libraries::Open(products == CudaProducts::kTold, why);
  if (libraries == nullptr) return 0;
  cuda::Warm(ctx, libraries.get(), act);
  const int64_t version = libraries->version();
  ctx->libraries = libraries.release();
  return version;
}

void CloseCudaLibraries(Context* ctx) {
  delete static_cast<cuda::Libraries*>(ctx->libraries);
  ctx->libraries = nullptr;
}

}  // namespace nibble::kernels
