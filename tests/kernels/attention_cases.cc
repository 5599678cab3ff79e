// attention_forward, attention_backward, attention_decode.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/cpu/workspace.h"
#include "kernels/cuda/workspace.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

struct AttentionShape {
  std::vector<int32_t> starts;
  int64_t heads, kv_heads, head_dim, window = 0;
  float soft_cap = 0;
  double q_size = 1, k_size = 1;  // so many times larger than ordinary ones
  int64_t m() const { return starts.back(); }
};

std::string Name(const std::string& op, const AttentionShape& s) {
  std::string name = op + " h=" + std::to_string(s.heads) + " g=" + std::to_string(s.kv_heads) +
                     " d=" + std::to_string(s.head_dim) + " starts=";
  for (size_t i = 0; i < s.starts.size() && i < 8; ++i) name += std::to_string(s.starts[i]) + ",";
  if (s.starts.size() > 8) name += ".." + std::to_string(s.starts.back());
  if (s.window > 0) name += " window=" + std::to_string(s.window);
  if (s.soft_cap > 0) name += " cap=" + std::to_string(s.soft_cap);
  if (s.q_size != 1) name += " size=1e" + std::to_string(std::lround(std::log10(s.q_size * s.k_size)));
  return name;
}

struct Setup {
  Setup(const KernelTable& table, const AttentionShape& s)
      : q(table.act, Normal(s.m() * s.heads * s.head_dim, 1, 1.5 * s.q_size)),
        k(table.act, Normal(s.m() * s.kv_heads * s.head_dim, 2, 1.5 * s.k_size)),
        v(table.act, Normal(s.m() * s.kv_heads * s.head_dim, 3)),
        out(table.act, s.m() * s.heads * s.head_dim),
        lse(table.real, s.m() * s.heads),
        dout(table.act, Normal(s.m() * s.heads * s.head_dim, 4)),
        dq(table.act, s.m() * s.heads * s.head_dim),
        dk(table.act, s.m() * s.kv_heads * s.head_dim),
        dv(table.act, s.m() * s.kv_heads * s.head_dim) {
    args.m = s.m();
    args.heads = s.heads;
    args.kv_heads = s.kv_heads;
    args.head_dim = s.head_dim;
    args.starts = s.starts.data();
    args.documents = static_cast<int64_t>(s.starts.size()) - 1;
    args.scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    args.window = s.window;
    args.soft_cap = s.soft_cap;
  }
  Tensor q, k, v, out, lse, dout, dq, dk, dv;
  AttentionArgs args;
};

int64_t Longest(const AttentionShape& s) {
  int64_t longest = 0;
  for (size_t i = 1; i < s.starts.size(); ++i)
    longest = std::max<int64_t>(longest, s.starts[i] - s.starts[i - 1]);
  return longest;
}

WorkspaceShape Workspace(const AttentionShape& s, int threads) {
  WorkspaceShape shape;
  shape.m = s.m();
  shape.heads = s.heads;
  shape.kv_heads = s.kv_heads;
  shape.head_dim = s.head_dim;
  shape.longest_document = Longest(s);
  shape.threads = threads;
  return shape;
}

int64_t ForwardBytes(const KernelTable& table, int threads, const AttentionShape& s) {
  return IsCuda(table) ? 0 : AttentionForwardWorkspaceBytes(Workspace(s, threads));
}
int64_t BackwardBytes(const KernelTable& table, int threads, const AttentionShape& s) {
  return IsCuda(table) ? cuda_workspace::AttentionBackwardWorkspaceBytes(Workspace(s, threads))
                       : AttentionBackwardWorkspaceBytes(Workspace(s, threads));
}
int64_t DecodeBytes(const KernelTable& table, int threads, const AttentionShape& s) {
  return IsCuda(table) ? cuda_workspace::AttentionDecodeWorkspaceBytes(s.m(), s.heads, s.head_dim)
                       : AttentionForwardWorkspaceBytes(Workspace(s, threads));
}

Outcome RunForward(const KernelTable& table, int threads, const AttentionShape& s) {
  Setup got(table, s), want(Ref64Table(), s);
  TestContext ctx(threads, ForwardBytes(table, threads, s)), ref(1, 64);
  table.attention_forward(ctx.get(), got.out.data(), got.lse.data(), got.q.data(), got.k.data(),
                          got.v.data(), got.args);
  Ref64Table().attention_forward(ref.get(), want.out.data(), want.lse.data(), want.q.data(),
                                 want.k.data(), want.v.data(), want.args);
  Comparison result;
  result.Add("out", got.out, want.out, ActTolerance(table));
  result.Add("lse", got.lse, want.lse, 1e-5);
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

Outcome RunBackward(const KernelTable& table, int threads, const AttentionShape& s) {
  Setup got(table, s), want(Ref64Table(), s);
  TestContext ctx(threads, BackwardBytes(table, threads, s)), ref(1, 64);
  // Both start from the reference's forward, rounded to the tested table's types.
  Ref64Table().attention_forward(ref.get(), want.out.data(), want.lse.data(), want.q.data(),
                                 want.k.data(), want.v.data(), want.args);
  const Tensor out(table.act, want.out.Values()), lse(table.real, want.lse.Values());
  const Tensor ref_out(DType::kF64, out.Values()), ref_lse(DType::kF64, lse.Values());
  table.attention_backward(ctx.get(), got.dq.data(), got.dk.data(), got.dv.data(), got.dout.data(),
                           out.data(), lse.data(), got.q.data(), got.k.data(), got.v.data(), got.args);
  Ref64Table().attention_backward(ref.get(), want.dq.data(), want.dk.data(), want.dv.data(),
                                  want.dout.data(), ref_out.data(), ref_lse.data(), want.q.data(),
                                  want.k.data(), want.v.data(), want.args);
  // Probabilities and score gradients are rounded to act before the last three products.
  const double tolerance = (DTypeBytes(table.act) == 2 ? 3 : 1) * ActTolerance(table);
  Comparison result;
  result.Add("dq", got.dq, want.dq, tolerance);
  result.Add("dk", got.dk, want.dk, tolerance);
  result.Add("dv", got.dv, want.dv, tolerance);
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// The last token of a document, from a cache that holds the whole of it.
Outcome RunDecode(const KernelTable& table, int threads, const AttentionShape& s) {
  Setup got(table, s), want(Ref64Table(), s);
  TestContext ctx(threads, DecodeBytes(table, threads, s)), ref(1, 64);
  const int64_t width = s.heads * s.head_dim;
  Tensor out(table.act, width), expected(DType::kF64, width);
  const std::vector<double> q = got.q.Values();
  const std::vector<double> last(q.end() - width, q.end());
  const Tensor q_last(table.act, last), q_want(DType::kF64, last);
  table.attention_decode(ctx.get(), out.data(), q_last.data(), got.k.data(), got.v.data(), s.m(),
                         got.args);
  Ref64Table().attention_decode(ref.get(), expected.data(), q_want.data(), want.k.data(), want.v.data(),
                                s.m(), want.args);
  Comparison result;
  result.Add("out", out, expected, ActTolerance(table));
  result.Guard("workspace", ctx.Intact());
  return result.Result();
}

// Documents of three rows and one of what is left.
std::vector<int32_t> EveryThree(int32_t rows) {
  std::vector<int32_t> starts;
  for (int32_t at = 0; at < rows; at += 3) starts.push_back(at);
  starts.push_back(rows);
  return starts;
}

}  // namespace

std::vector<Case> AttentionCases() {
  const std::vector<AttentionShape> shapes = {
      {{0, 1}, 1, 1, 2},
      {{0, 5}, 2, 1, 8},
      {{0, 17, 18, 50}, 4, 2, 32},
      {{0, 96}, 2, 2, 64},
      {{0, 97}, 3, 1, 64},
      {{0, 200}, 2, 1, 48},
      {{0, 3, 150, 300}, 6, 3, 32},
      {{0, 210}, 2, 2, 128},
      {{0, 100}, 1, 1, 256},
      {{0, 260}, 2, 1, 64, 50},
      {{0, 120, 330}, 4, 2, 24, 100},
      {{0, 40}, 2, 1, 64, 2},
      {{0, 33}, 2, 1, 6},
      {{0, 5, 130}, 2, 1, 64, 0, 3},
      {{0, 110}, 1, 1, 24, 40, 1.5f},
      {{0, 70, 300}, 4, 2, 128, 90},
      {{0, 30, 140}, 4, 2, 256, 60, 50},
      {{0, 90}, 2, 1, 256, 0, 3},
      {{0, 70}, 8, 1, 256},
      {{0, 9, 40}, 28, 4, 8},  // seven heads on one in four cuts
      {EveryThree(210), 2, 1, 16},
  };
  std::vector<Case> cases;
  for (const AttentionShape& s : shapes) {
    cases.push_back({Name("attention_forward", s),
                     [s](const KernelTable& t, int threads) { return RunForward(t, threads, s); }});
    cases.push_back({Name("attention_backward", s),
                     [s](const KernelTable& t, int threads) { return RunBackward(t, threads, s); }});
    cases.push_back({Name("attention_decode", s),
                     [s](const KernelTable& t, int threads) { return RunDecode(t, threads, s); }});
  }
  // So far apart that one key is certain; backward would need an lse that tells more than a float. The first
  // are as large as fp16 has them, whose probabilities may not be far above 1, either.
  for (const auto& [q_size, k_size] :
       {std::pair{8192.0, 8192.0}, std::pair{1e10, 1.0}, std::pair{1e30, 1.0}}) {
    const AttentionShape far{{0, 17, 18, 320}, 3, 1, 48, 210, 0, q_size, k_size};
    for (const auto& [op, run] :
         {std::pair{"attention_forward", &RunForward}, std::pair{"attention_decode", &RunDecode}}) {
      cases.push_back({Name(op, far), [far, run = run](const KernelTable& t, int threads) {
                         return t.act == DType::kF16 && far.q_size > 8192 ? Outcome{} : run(t, threads, far);
                       }});
    }
  }
  // As wide as a base's heads may be (engine/spec/model_config.cc); cuda's are narrower.
  const AttentionShape wide{{0, 5}, 2, 1, 1024};
  for (const auto& [op, run] : {std::pair{"attention_forward", &RunForward},
                                std::pair{"attention_backward", &RunBackward},
                                std::pair{"attention_decode", &RunDecode}}) {
    cases.push_back({Name(op, wide), [wide, run = run](const KernelTable& t, int threads) {
                       return IsCuda(t) ? Outcome{} : run(t, threads, wide);
                     }});
  }
  return cases;
}

}  // namespace nibble::kernels::check
