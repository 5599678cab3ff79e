// Every backward op against central differences of its forward, in double on ref64. The loss is a fixed
// random combination of the outputs.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <utility>

#include "kernels/cpu/workspace.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"
#include "tests/kernels/weights.h"

namespace nibble::kernels::check {
namespace {

using Vector = std::vector<double>;

double Combine(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Perturbs every element of `at` and compares the loss's slope with `gradient`.
void ExpectSlope(const char* name, Vector* at, const Vector& gradient, const std::function<double()>& loss) {
  constexpr double kStep = 1e-5;
  double squares = 0;
  for (const double g : gradient) squares += g * g;
  const double rms = std::sqrt(squares / static_cast<double>(gradient.size()));
  for (size_t i = 0; i < at->size(); ++i) {
    const double saved = (*at)[i];
    (*at)[i] = saved + kStep;
    const double above = loss();
    (*at)[i] = saved - kStep;
    const double below = loss();
    (*at)[i] = saved;
    EXPECT_NEAR((above - below) / (2 * kStep), gradient[i], 1e-7 * (rms + std::fabs(gradient[i])) + 1e-9)
        << name << "[" << i << "]";
  }
}

const KernelTable& T() { return Ref64Table(); }

TEST(Gradient, Linear) {
  for (const float dropout : {0.0f, 0.4f}) {
    const int64_t m = 5, k = 12, n = 7, r = 3;
    const TestWeight weight(QuantType::kNF4, n, k, 64, true, 1);
    Vector x = Normal(m * k, 2), a = Normal(r * k, 3), b = Normal(n * r, 4);
    const Vector c = Normal(m * n, 5), bias = Normal(n, 6);
    Vector y(m * n), u(m * r), dx(m * k), da(r * k, 0), db(n * r, 0);
    const Tensor bias_values(DType::kF32, bias);
    WorkspaceShape shape;
    shape.m = m;
    shape.k = k;
    shape.n = n;
    shape.r = r;
    TestContext ctx(1, LinearWorkspaceBytes(shape));
    LoraArgs lora;
    lora.r = r;
    lora.scale = 2.5f;
    lora.a = a.data();
    lora.b = b.data();
    lora.u = u.data();
    lora.da = da.data();
    lora.db = db.data();
    lora.dropout = {1, 2, dropout};
    LinearArgs args;
    args.m = m;
    args.w = weight.view();
    args.bias = {bias_values.data(), DType::kF32};
    args.lora = &lora;
    const auto loss = [&] {
      T().linear_forward(ctx.get(), y.data(), x.data(), args);
      return Combine(y, c);
    };
    loss();
    T().linear_backward(ctx.get(), dx.data(), false, c.data(), x.data(), args);
    ExpectSlope("dx", &x, dx, loss);
    ExpectSlope("da", &a, da, loss);
    ExpectSlope("db", &b, db, loss);
  }
}

TEST(Gradient, LinearAccumulates) {
  const int64_t m = 3, k = 8, n = 4;
  const TestWeight weight(QuantType::kNF4, n, k, 64, false, 1);
  const Vector dy = Normal(m * n, 2);
  Vector dx(m * k, 0), sum(m * k, 1);
  WorkspaceShape shape;
  shape.m = m;
  TestContext ctx(1, LinearWorkspaceBytes(shape));
  LinearArgs args;
  args.m = m;
  args.w = weight.view();
  T().linear_backward(ctx.get(), dx.data(), false, dy.data(), nullptr, args);
  T().linear_backward(ctx.get(), sum.data(), true, dy.data(), nullptr, args);
  for (size_t i = 0; i < dx.size(); ++i) EXPECT_DOUBLE_EQ(sum[i], dx[i] + 1);
}

TEST(Gradient, RmsNorm) {
  const int64_t m = 3, dim = 10;
  Vector x = Normal(m * dim, 1), y(m * dim), rstd(m), dx(m * dim);
  const Vector c = Normal(m * dim, 2), w = Normal(dim, 3);
  const ParamView view{w.data(), DType::kF64};
  TestContext ctx(1, 64);
  const auto loss = [&] {
    T().rmsnorm_forward(ctx.get(), y.data(), rstd.data(), x.data(), view, m, dim, 1e-3f, 1);
    return Combine(y, c);
  };
  loss();
  T().rmsnorm_backward(ctx.get(), dx.data(), false, c.data(), x.data(), view, rstd.data(), m, dim, 1);
  ExpectSlope("dx", &x, dx, loss);
}

// Of whole heads, and of their first elements.
TEST(Gradient, Rope) {
  const int64_t m = 4, heads = 2, dim = 6;
  for (const int64_t rotary : {6, 4}) {
    Vector x = Normal(m * heads * dim, 1);
    const Vector c = Normal(m * heads * dim, 2);
    const std::vector<int32_t> positions = {0, 1, 2, 1};
    std::vector<float> cos_sin;
    for (int p = 0; p < 3; ++p)
      for (int i = 0; i < rotary / 2; ++i) {
        cos_sin.push_back(std::cos(0.3f * p * (i + 1)));
        cos_sin.push_back(std::sin(0.3f * p * (i + 1)));
      }
    TestContext ctx(1, 64);
    const auto loss = [&] {
      Vector y = x;
      T().rope(ctx.get(), y.data(), positions.data(), cos_sin.data(), m, heads, dim, rotary, false);
      return Combine(y, c);
    };
    Vector dx = c;
    T().rope(ctx.get(), dx.data(), positions.data(), cos_sin.data(), m, heads, dim, rotary, true);
    ExpectSlope("dx", &x, dx, loss);
  }
}

TEST(Gradient, Attention) {
  for (const auto& [window, cap] : {std::pair<int64_t, float>{0, 0}, {3, 0}, {0, 1.5f}, {4, 0.7f}}) {
    const std::vector<int32_t> starts = {0, 1, 6, 13};
    AttentionArgs args;
    args.m = 13;
    args.heads = 4;
    args.kv_heads = 2;
    args.head_dim = 6;
    args.starts = starts.data();
    args.documents = 3;
    args.scale = 0.4f;
    args.window = window;
    args.soft_cap = cap;
    const int64_t width = args.m * args.heads * args.head_dim, kv = width / 2;
    Vector q = Normal(width, 1), k = Normal(kv, 2), v = Normal(kv, 3);
    Vector out(width), lse(args.m * args.heads), dq(width), dk(kv), dv(kv);
    const Vector c = Normal(width, 4);
    TestContext ctx(1, 64);
    const auto loss = [&] {
      T().attention_forward(ctx.get(), out.data(), lse.data(), q.data(), k.data(), v.data(), args);
      return Combine(out, c);
    };
    loss();
    T().attention_backward(ctx.get(), dq.data(), dk.data(), dv.data(), c.data(), out.data(), lse.data(),
                           q.data(), k.data(), v.data(), args);
    ExpectSlope("dq", &q, dq, loss);
    ExpectSlope("dk", &k, dk, loss);
    ExpectSlope("dv", &v, dv, loss);
  }
}

TEST(Gradient, DocumentsDoNotSeeEachOther) {
  const std::vector<int32_t> starts = {0, 4, 9};
  AttentionArgs args;
  args.m = 9;
  args.heads = args.kv_heads = 1;
  args.head_dim = 4;
  args.starts = starts.data();
  args.documents = 2;
  args.scale = 0.5f;
  const Vector q = Normal(36, 1), k = Normal(36, 2), v = Normal(36, 3);
  Vector all(36), alone(20), lse(9);
  TestContext ctx(1, 64);
  T().attention_forward(ctx.get(), all.data(), lse.data(), q.data(), k.data(), v.data(), args);
  const std::vector<int32_t> one = {0, 5};
  args.m = 5;
  args.starts = one.data();
  args.documents = 1;
  T().attention_forward(ctx.get(), alone.data(), lse.data(), q.data() + 16, k.data() + 16, v.data() + 16,
                        args);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(all[16 + i], alone[i]);
}

TEST(Gradient, Gated) {
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
    const int64_t count = 20;
    const GatedArgs args{.width = count, .activation = activation};
    Vector gate = Normal(count, 1, 2), up = Normal(count, 2), out(count), dgate(count), dup(count);
    const Vector c = Normal(count, 3);
    TestContext ctx(1, 64);
    const auto loss = [&] {
      T().gated_forward(ctx.get(), out.data(), gate.data(), up.data(), args);
      return Combine(out, c);
    };
    T().gated_backward(ctx.get(), dgate.data(), dup.data(), c.data(), gate.data(), up.data(), args);
    ExpectSlope("dgate", &gate, dgate, loss);
    ExpectSlope("dup", &up, dup, loss);
  }
}

TEST(Gradient, CrossEntropy) {
  const int64_t m = 4, dim = 6, vocab = 9;
  Vector h = Normal(m * dim, 1), dh(m * dim);
  const Vector head = Normal(vocab * dim, 2);
  const std::vector<int32_t> labels = {3, -1, 0, 8};
  WorkspaceShape shape;
  shape.m = m;
  shape.k = dim;
  shape.vocab = vocab;
  shape.act_bytes = 8;
  TestContext ctx(1, CrossEntropyWorkspaceBytes(shape));
  const ParamView view{head.data(), DType::kF64};
  for (const float cap : {0.0f, 30.0f, 1.5f}) {
    SCOPED_TRACE(cap);
    const auto loss = [&] {
      double sum = 0;
      T().cross_entropy(ctx.get(), &sum, nullptr, h.data(), view, labels.data(), m, dim, vocab, 1, cap);
      return sum * 0.5;
    };
    double sum = 0;
    T().cross_entropy(ctx.get(), &sum, dh.data(), h.data(), view, labels.data(), m, dim, vocab, 0.5, cap);
    EXPECT_DOUBLE_EQ(sum * 0.5, loss());
    ExpectSlope("dh", &h, dh, loss);
    for (int64_t i = 0; i < dim; ++i) EXPECT_EQ(dh[static_cast<size_t>(dim + i)], 0);
  }
}

// What is capped is the logits that `logits` gives.
TEST(Gradient, CrossEntropyOfCappedLogits) {
  const int64_t dim = 6, vocab = 9;
  const float cap = 1.5f;
  const Vector h = Normal(dim, 1), head = Normal(vocab * dim, 2);
  const int32_t label = 4;
  TestContext ctx(1, 4096);
  const ParamView view{head.data(), DType::kF64};
  std::vector<float> plain(static_cast<size_t>(vocab)), capped(plain);
  T().logits(ctx.get(), plain.data(), h.data(), view, 1, dim, vocab, 0);
  T().logits(ctx.get(), capped.data(), h.data(), view, 1, dim, vocab, cap);
  double total = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double want = cap * std::tanh(static_cast<double>(plain[i]) / cap);
    EXPECT_NEAR(capped[i], want, 1e-6);
    total += std::exp(want);
  }
  double sum = 0;
  T().cross_entropy(ctx.get(), &sum, nullptr, h.data(), view, &label, 1, dim, vocab, 1, cap);
  EXPECT_NEAR(sum, std::log(total) - static_cast<double>(capped[label]), 1e-5);
}

TEST(Gradient, AdamWFollowsItsFormula) {
  double p = 1, m = 0.1, v = 0.04;
  const double g = 0.5;
  AdamWArgs args;
  args.count = 1;
  args.learning_rate = 0.01;
  args.weight_decay = 0.1;
  args.step = 3;
  args.gradient_scale = 0.5;
  TestContext ctx(1, 64);
  T().adamw(ctx.get(), &p, &g, &m, &v, args);
  EXPECT_DOUBLE_EQ(m, 0.9 * 0.1 + (1 - 0.9) * 0.25);
  EXPECT_DOUBLE_EQ(v, 0.999 * 0.04 + (1 - 0.999) * 0.0625);
  const double decayed = 1 - 0.01 * 0.1;
  EXPECT_NEAR(p, decayed - 0.01 / (1 - std::pow(0.9, 3)) * m /
                               (std::sqrt(v / (1 - std::pow(0.999, 3))) + 1e-8), 1e-15);
}

}  // namespace
}  // namespace nibble::kernels::check
