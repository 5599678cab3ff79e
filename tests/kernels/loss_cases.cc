// cross_entropy and logits.
#include <cmath>

#include "kernels/cpu/workspace.h"
#include "kernels/cuda/workspace.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

struct LossShape {
  int64_t m, dim, vocab;
  DType head = DType::kBF16;
  int64_t every = 1;  // of so many rows one has a label
  double size = 1;    // of what logits are made of
  float soft_cap = 0;
};

WorkspaceShape Workspace(const LossShape& s, int threads, int act_bytes) {
  WorkspaceShape shape;
  shape.m = s.m;
  shape.k = s.dim;
  shape.vocab = s.vocab;
  shape.threads = threads;
  shape.act_bytes = act_bytes;
  return shape;
}

std::vector<int32_t> Labels(const LossShape& s) {
  std::vector<int32_t> labels(static_cast<size_t>(s.m), -1);
  for (int64_t i = s.every - 1; i < s.m; i += s.every)
    labels[static_cast<size_t>(i)] = static_cast<int32_t>((i * 17 + 5) % s.vocab);
  return labels;
}

Outcome RunLoss(const KernelTable& t, int threads, const LossShape& s) {
  const auto act_bytes = static_cast<int>(DTypeBytes(t.act));
  if (t.act == DType::kF16 && s.size != 0 && s.size != 1) return {};  // has no such numbers
  const WorkspaceShape work = Workspace(s, threads, act_bytes);
  TestContext ctx(threads, IsCuda(t) ? cuda_workspace::CrossEntropyOwnBytes(work, s.head != t.act)
                                     : CrossEntropyWorkspaceBytes(work)),
      ref_ctx(1, CrossEntropyWorkspaceBytes(Workspace(s, 1, 8)));
  const auto h = Normal(s.m * s.dim, 1, s.size);
  const Tensor ht(t.act, h), hr(DType::kF64, h), head(s.head, Normal(s.vocab * s.dim, 2, 0.2));
  const std::vector<int32_t> labels = Labels(s);
  Tensor dh(t.act, s.m * s.dim), want(DType::kF64, s.m * s.dim);
  double loss = 1, only = 1, want_loss = 1;
  const ParamView view{head.data(), s.head};
  t.cross_entropy(ctx.get(), &loss, dh.data(), ht.data(), view, labels.data(), s.m, s.dim, s.vocab, 0.25,
                  s.soft_cap);
  t.cross_entropy(ctx.get(), &only, nullptr, ht.data(), view, labels.data(), s.m, s.dim, s.vocab, 0.25,
                  s.soft_cap);
  Ref64Table().cross_entropy(ref_ctx.get(), &want_loss, want.data(), hr.data(), view, labels.data(), s.m,
                             s.dim, s.vocab, 0.25, s.soft_cap);
  Comparison result;
  result.AddScalar("loss", loss, want_loss, 1e-5);
  result.AddScalar("loss without gradient", only, loss, 1e-15);
  result.Add("dh", dh, want, ActTolerance(t));
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

Outcome RunLogits(const KernelTable& t, int threads, const LossShape& s) {
  if (t.act == DType::kF16 && s.size != 1) return {};  // has no such numbers
  const WorkspaceShape work = Workspace(s, threads, 2);
  TestContext ctx(threads, IsCuda(t) ? cuda_workspace::LogitsOwnBytes(work, s.head != t.act)
                                     : LogitsWorkspaceBytes(work)),
      ref_ctx(1, 64);
  const auto h = Normal(s.m * s.dim, 1, s.size);
  const Tensor ht(t.act, h), hr(DType::kF64, h), head(s.head, Normal(s.vocab * s.dim, 2, 0.2));
  Tensor out(DType::kF32, s.m * s.vocab), want(DType::kF32, s.m * s.vocab);
  const ParamView view{head.data(), s.head};
  t.logits(ctx.get(), static_cast<float*>(out.data()), ht.data(), view, s.m, s.dim, s.vocab, s.soft_cap);
  Ref64Table().logits(ref_ctx.get(), static_cast<float*>(want.data()), hr.data(), view, s.m, s.dim,
                      s.vocab, s.soft_cap);
  Comparison result;
  result.Add("logits", out, want, 2e-5);
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

}  // namespace

std::vector<Case> LossCases() {
  const std::vector<LossShape> shapes = {
      {1, 1, 2},        {3, 17, 33},      {40, 192, 1024},     {25, 64, 1000, DType::kBF16, 3},
      {9, 48, 97, DType::kF32}, {7, 32, 5000}, {5, 16, 40, DType::kBF16, 9},
      {97, 4, 88000}, {1100, 16, 70, DType::kBF16, 1}, {2100, 16, 70}, {1, 192, 515},
      // All the same; nearly; so far apart that one word is certain.
      {7, 48, 515, DType::kBF16, 1, 0}, {7, 48, 515, DType::kBF16, 1, 1e-39},
      {7, 48, 515, DType::kBF16, 1, 1e4}, {7, 48, 515, DType::kBF16, 1, 1e30},
      // Capped: little, much, and all of them at the cap.
      {3, 17, 33, DType::kBF16, 1, 1, 30}, {25, 64, 1000, DType::kBF16, 3, 1, 2},
      {1, 192, 515, DType::kBF16, 1, 1, 30},
      {9, 48, 97, DType::kF32, 1, 1, 5}, {97, 4, 88000, DType::kBF16, 1, 1, 30},
      {1100, 16, 70, DType::kBF16, 9, 1, 1.5f}, {7, 48, 515, DType::kBF16, 1, 100, 30},
      {7, 48, 515, DType::kBF16, 1, 1e30, 30},
  };
  std::vector<Case> cases;
  for (const LossShape& s : shapes) {
    std::string shape = " m=" + std::to_string(s.m) + " dim=" + std::to_string(s.dim) +
                        " vocab=" + std::to_string(s.vocab);
    if (s.head == DType::kF32) shape += " f32";
    if (s.every > 1) shape += " label-every=" + std::to_string(s.every);
    if (s.size == 0) {
      shape += " size=0";
    } else if (s.size != 1) {
      shape += " size=1e" + std::to_string(std::lround(std::log10(s.size)));
    }
    if (s.soft_cap > 0) shape += " cap=" + std::to_string(s.soft_cap);
    cases.push_back({"cross_entropy" + shape,
                     [s](const KernelTable& t, int threads) { return RunLoss(t, threads, s); }});
    if (s.m <= 50 && s.size >= 1 && (s.size == 1 || s.soft_cap > 0))
      cases.push_back({"logits" + shape,
                       [s](const KernelTable& t, int threads) { return RunLogits(t, threads, s); }});
  }
  return cases;
}

}  // namespace nibble::kernels::check
