// Norms, rotary embedding, gated activations, add, embedding, optimizer, sums and conversion.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/nf4.h"
#include "kernels/cuda/workspace.h"
#include "kernels/tables.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

using Run = std::function<Outcome(const KernelTable&, int)>;

// `faint`: rows of which epsilon is a large part, and rows of nothing else.
Outcome RmsNorm(const KernelTable& t, int threads, int64_t m, int64_t dim, DType weight_type,
                float unit_offset, bool accumulate, bool faint = false) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const KernelTable& ref = Ref64Table();
  auto x = Normal(m * dim, 1, faint ? 3e-3 : 3);
  if (faint) std::fill_n(x.begin() + m / 2 * dim, dim, 0.0);
  const auto w = Normal(dim, 2), dy = Normal(m * dim, 3), old = Normal(m * dim, 4);
  const Tensor xt(t.act, x), xr(DType::kF64, x), wt(weight_type, w), dyt(t.act, dy), dyr(DType::kF64, dy);
  Tensor y(t.act, m * dim), yr(DType::kF64, m * dim), rstd(t.real, m), rstd_r(DType::kF64, m),
      dx(t.act, old), dxr(DType::kF64, old);
  const ParamView view{wt.data(), weight_type};
  t.rmsnorm_forward(ctx.get(), y.data(), rstd.data(), xt.data(), view, m, dim, 1e-5f, unit_offset);
  ref.rmsnorm_forward(ref_ctx.get(), yr.data(), rstd_r.data(), xr.data(), view, m, dim, 1e-5f,
                      unit_offset);
  t.rmsnorm_backward(ctx.get(), dx.data(), accumulate, dyt.data(), xt.data(), view, rstd.data(), m, dim,
                     unit_offset);
  ref.rmsnorm_backward(ref_ctx.get(), dxr.data(), accumulate, dyr.data(), xr.data(), view, rstd_r.data(),
                       m, dim, unit_offset);
  // In place, both ways.
  Tensor in_place(t.act, x), back_in_place(t.act, dy), rstd2(t.real, m);
  t.rmsnorm_forward(ctx.get(), in_place.data(), rstd2.data(), in_place.data(), view, m, dim, 1e-5f,
                    unit_offset);
  Comparison result;
  result.Add("y", y, yr, ActTolerance(t));
  result.Add("rstd", rstd, rstd_r, 1e-5);
  result.Add("dx", dx, dxr, ActTolerance(t));
  result.Add("y in place", in_place, yr, ActTolerance(t));
  if (!accumulate) {
    t.rmsnorm_backward(ctx.get(), back_in_place.data(), false, back_in_place.data(), xt.data(), view,
                       rstd.data(), m, dim, unit_offset);
    result.Add("dx in place", back_in_place, dxr, ActTolerance(t));
  }
  return result.Result();
}

Outcome Add(const KernelTable& t, int threads, int64_t count) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const auto a = Normal(count, 1), b = Normal(count, 2);
  const Tensor at(t.act, a), bt(t.act, b), ar(DType::kF64, a), br(DType::kF64, b);
  Tensor out(t.act, count), want(DType::kF64, count), in_place(t.act, a);
  t.add(ctx.get(), out.data(), at.data(), bt.data(), count);
  t.add(ctx.get(), in_place.data(), in_place.data(), bt.data(), count);
  Ref64Table().add(ref_ctx.get(), want.data(), ar.data(), br.data(), count);
  Comparison result;
  result.Add("out", out, want, ActTolerance(t));
  result.Add("in place", in_place, want, ActTolerance(t));
  return result.Result();
}

Outcome Rope(const KernelTable& t, int threads, int64_t heads, int64_t dim, int64_t rotary, bool inverse) {
  const int64_t m = 21;
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  std::vector<int32_t> positions(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) positions[static_cast<size_t>(i)] = static_cast<int32_t>(i * 7 % 50);
  std::vector<double> angles;
  for (int64_t p = 0; p < 50; ++p)
    for (int64_t i = 0; i < rotary / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(rotary));
      angles.push_back(std::cos(angle));
      angles.push_back(std::sin(angle));
    }
  const Tensor table(DType::kF32, angles);
  const auto x = Normal(m * heads * dim, 1);
  Tensor got(t.act, x), want(DType::kF64, x);
  const auto* cos_sin = static_cast<const float*>(table.data());
  t.rope(ctx.get(), got.data(), positions.data(), cos_sin, m, heads, dim, rotary, inverse);
  Ref64Table().rope(ref_ctx.get(), want.data(), positions.data(), cos_sin, m, heads, dim, rotary, inverse);
  Comparison result;
  result.Add("x", got, want, ActTolerance(t));
  return result.Result();
}

// gate and up in arrays whose rows have more than they need, as halves of one array have.
Outcome GatedRows(const KernelTable& t, int threads, int64_t rows, int64_t width, int64_t stride,
                  Activation activation) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const auto gate = Normal(rows * stride, 1, 3), up = Normal(rows * stride, 2);
  const auto dout = Normal(rows * width, 3);
  const Tensor gt(t.act, gate), ut(t.act, up), dt(t.act, dout), gr(DType::kF64, gate), ur(DType::kF64, up),
      dr(DType::kF64, dout);
  Tensor out(t.act, rows * width), want(DType::kF64, rows * width);
  const Tensor dg(t.act, gate), du(t.act, up), dg_want(DType::kF64, gate), du_want(DType::kF64, up);
  const GatedArgs args{.rows = rows, .width = width, .stride = stride, .activation = activation};
  t.gated_forward(ctx.get(), out.data(), gt.data(), ut.data(), args);
  Ref64Table().gated_forward(ref_ctx.get(), want.data(), gr.data(), ur.data(), args);
  t.gated_backward(ctx.get(), dg.data(), du.data(), dt.data(), dg.data(), du.data(), args);
  Ref64Table().gated_backward(ref_ctx.get(), dg_want.data(), du_want.data(), dr.data(), dg_want.data(),
                              du_want.data(), args);
  Comparison result;
  result.Add("out", out, want, ActTolerance(t));
  result.Add("dgate", dg, dg_want, ActTolerance(t));
  result.Add("dup", du, du_want, ActTolerance(t));
  return result.Result();
}

Outcome Gated(const KernelTable& t, int threads, int64_t count, Activation activation) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const KernelTable& ref = Ref64Table();
  auto gate = Normal(count, 1, 3);
  const auto up = Normal(count, 2), dout = Normal(count, 3);
  for (size_t i = 0; i < gate.size(); i += 13) gate[i] = i % 2 == 0 ? 100 : -100;  // saturated
  const Tensor gt(t.act, gate), ut(t.act, up), dt(t.act, dout), gr(DType::kF64, gate),
      ur(DType::kF64, up), dr(DType::kF64, dout);
  Tensor out(t.act, count), want(DType::kF64, count), dg(t.act, count), du(t.act, count),
      dg_want(DType::kF64, count), du_want(DType::kF64, count), in_gate(t.act, gate), in_up(t.act, up);
  const GatedArgs args{.width = count, .activation = activation};
  t.gated_forward(ctx.get(), out.data(), gt.data(), ut.data(), args);
  ref.gated_forward(ref_ctx.get(), want.data(), gr.data(), ur.data(), args);
  t.gated_backward(ctx.get(), dg.data(), du.data(), dt.data(), gt.data(), ut.data(), args);
  ref.gated_backward(ref_ctx.get(), dg_want.data(), du_want.data(), dr.data(), gr.data(), ur.data(),
                     args);
  t.gated_backward(ctx.get(), in_gate.data(), in_up.data(), dt.data(), in_gate.data(), in_up.data(),
                   args);
  Comparison result;
  result.Add("out", out, want, ActTolerance(t));
  result.Add("dgate", dg, dg_want, ActTolerance(t));
  result.Add("dup", du, du_want, ActTolerance(t));
  result.Add("dgate in place", in_gate, dg_want, ActTolerance(t));
  result.Add("dup in place", in_up, du_want, ActTolerance(t));
  return result.Result();
}

// Split and joined again; copies, so every bit is held against what went in.
Outcome Columns(const KernelTable& t, int threads, int64_t rows, std::array<int64_t, kMostColumns> width) {
  TestContext ctx(threads, 64);
  ColumnsArgs args{.rows = rows};
  std::vector<Tensor> parts;
  parts.reserve(kMostColumns);
  for (size_t p = 0; p < width.size(); ++p) {
    args.width[p] = width[p];
    args.part[p] = width[p] == 0 ? nullptr : parts.emplace_back(t.act, rows * width[p]).data();
  }
  const auto values = Normal(rows * args.AllWidth(), 1);
  const Tensor all(t.act, values), again(t.act, rows * args.AllWidth());
  t.split_columns(ctx.get(), all.data(), args);
  t.join_columns(ctx.get(), again.data(), args);
  Comparison result;
  int64_t first = 0;
  for (const Tensor& part : parts) {
    const int64_t columns = part.count() / rows;
    std::vector<double> wanted;
    for (int64_t row = 0; row < rows; ++row) {
      const auto from = values.begin() + row * args.AllWidth() + first;
      wanted.insert(wanted.end(), from, from + columns);
    }
    first += columns;
    result.Add("part", part, Tensor(t.act, wanted), 0);
  }
  result.Add("joined", again, all, 0);
  return result.Result();
}

Outcome Embedding(const KernelTable& t, int threads, int64_t m, int64_t dim, DType type, float scale) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const Tensor table(type, Normal(50 * dim, 1));
  std::vector<int32_t> ids(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) ids[static_cast<size_t>(i)] = static_cast<int32_t>((i * 31 + 49) % 50);
  Tensor got(t.act, m * dim), want(DType::kF64, m * dim);
  t.embedding_forward(ctx.get(), got.data(), ids.data(), {table.data(), type}, m, dim, scale);
  Ref64Table().embedding_forward(ref_ctx.get(), want.data(), ids.data(), {table.data(), type}, m, dim,
                                 scale);
  Comparison result;
  result.Add("out", got, want, ActTolerance(t));
  return result.Result();
}

Outcome AdamW(const KernelTable& t, int threads, int64_t count) {
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const auto p = Normal(count, 1);
  auto g = Normal(count, 2, 0.01), m = Normal(count, 3, 0.01), v = Normal(count, 4, 0.01);
  for (size_t i = 0; i < v.size(); ++i) {
    // Of some nothing was ever seen, of some so little that epsilon is the larger part.
    const double scale = i % 5 == 1 ? 0 : i % 5 == 2 ? 0x1p-24 : 1;
    g[i] *= scale;
    m[i] *= scale;
    v[i] *= scale;
    v[i] *= v[i];
  }
  Tensor pt(t.real, p), mt(t.real, m), vt(t.real, v), pr(DType::kF64, p), mr(DType::kF64, m),
      vr(DType::kF64, v);
  const Tensor gt(t.real, g), gr(DType::kF64, g);
  AdamWArgs args;
  args.count = count;
  args.learning_rate = 2e-3;
  args.weight_decay = 0.1;
  args.step = 7;
  args.gradient_scale = 0.7;
  t.adamw(ctx.get(), pt.data(), gt.data(), mt.data(), vt.data(), args);
  Ref64Table().adamw(ref_ctx.get(), pr.data(), gr.data(), mr.data(), vr.data(), args);
  Comparison result;
  result.Add("p", pt, pr, 2e-6);
  result.Add("m", mt, mr, 2e-6);
  result.Add("v", vt, vr, 2e-6);
  return result.Result();
}

// Three steps from zero moments, bit for bit what ref does in float, with gradients of up to some hundredths
// of `unit`.
Outcome AdamW8(const KernelTable& t, int threads, int64_t count, double unit) {
  const KernelTable& ref = RefTable();
  TestContext ctx(threads, 64), ref_ctx(1, 64);
  const int64_t blocks = (count + kAdam8Block - 1) / kAdam8Block;
  const std::vector<double> zeros(static_cast<size_t>(blocks), 0);
  struct Moments {
    Moments(int64_t count, const std::vector<double>& zeros)
        : codes_m(count), codes_v(count), absmax_m(DType::kF32, zeros), absmax_v(DType::kF32, zeros) {
      state.m = static_cast<uint8_t*>(codes_m.data());
      state.v = static_cast<uint8_t*>(codes_v.data());
      std::memset(state.m, 0, static_cast<size_t>(count));
      std::memset(state.v, 0, static_cast<size_t>(count));
      state.m_absmax = static_cast<float*>(absmax_m.data());
      state.v_absmax = static_cast<float*>(absmax_v.data());
      state.signed_map = SignedDynamicMap();
      state.unsigned_map = UnsignedDynamicMap();
    }
    std::vector<double> Codes(bool second) const {
      const uint8_t* codes = second ? state.v : state.m;
      return {codes, codes + codes_m.bytes()};
    }
    Guarded codes_m, codes_v;
    Tensor absmax_m, absmax_v;
    Adam8State state;
  };
  Moments got(count, zeros), want(count, zeros);
  const auto p = Normal(count, 1);
  Tensor pt(t.real, p), pr(DType::kF32, p);
  AdamWArgs args;
  args.count = count;
  args.learning_rate = 2e-3;
  args.weight_decay = 0.1;
  args.gradient_scale = 0.7;
  for (args.step = 1; args.step <= 3; ++args.step) {
    auto g = Normal(count, static_cast<uint64_t>(args.step) + 10, 0.01);
    // Magnitudes over many decades, and a block without any gradient.
    for (size_t i = 0; i < g.size(); ++i)
      g[i] = i / 256 == 2 ? 0 : g[i] * unit * std::pow(10.0, -static_cast<double>(i % 7));
    const Tensor gt(t.real, g), gr(DType::kF32, g);
    t.adamw8(ctx.get(), pt.data(), gt.data(), got.state, args);
    ref.adamw8(ref_ctx.get(), pr.data(), gr.data(), want.state, args);
  }
  Comparison result;
  result.Add("p", pt, pr, 0);
  result.Add("m absmax", got.absmax_m, want.absmax_m, 0);
  result.Add("v absmax", got.absmax_v, want.absmax_v, 0);
  result.Add("m codes", Tensor(DType::kF32, got.Codes(false)), Tensor(DType::kF32, want.Codes(false)), 0);
  result.Add("v codes", Tensor(DType::kF32, got.Codes(true)), Tensor(DType::kF32, want.Codes(true)), 0);
  result.Guard("m codes", got.codes_m.Intact());
  result.Guard("v codes", got.codes_v.Intact());
  return result.Result();
}

Outcome SumSquares(const KernelTable& t, int threads, int64_t count) {
  TestContext ctx(threads, cuda_workspace::SumSquaresWorkspaceBytes()), ref_ctx(1, 64);
  const auto x = Normal(count, 1);
  const Tensor xt(t.real, x), xr(DType::kF64, x);
  Comparison result;
  double sum = 0, expected = 0;
  t.sum_squares(ctx.get(), &sum, xt.data(), count);
  Ref64Table().sum_squares(ref_ctx.get(), &expected, xr.data(), count);
  result.AddScalar("sum", sum, expected, 1e-12);
  if (count > 0) {
    auto bad = x;
    bad.back() = INFINITY;
    const Tensor infinite(t.real, bad);
    t.sum_squares(ctx.get(), &sum, infinite.data(), count);
    if (std::isfinite(sum))
      result.AddScalar("an infinity must show", 0, 1, 1e-12);
  }
  return result.Result();
}

Outcome ToAct(const KernelTable& t, int threads, int64_t count) {
  TestContext ctx(threads, 64);
  std::vector<double> x = Normal(count, 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= 1 + static_cast<double>(i % 16) * 0x1p-11;  // ties too
  const Tensor in(t.real, x), want(t.act, in.Values());
  Tensor out(t.act, count);
  t.to_act(ctx.get(), out.data(), in.data(), count);
  Comparison result;
  result.Add("out", out, want, 1e-12);
  return result.Result();
}

}  // namespace

std::vector<Case> ElementwiseCases() {
  std::vector<Case> cases;
  const auto add = [&](const std::string& name, Run run) { cases.push_back({name, std::move(run)}); };
  const std::pair<int64_t, int64_t> rows[] = {{1, 2},    {3, 7},    {37, 128}, {5, 192},  {20, 576},
                                             {9, 1031}, {2, 1536}, {3, 3072}, {2, 5120}, {2, 8200}};
  for (const auto& row : rows) {
    const int64_t m = row.first, dim = row.second;  // names of parts are not captured by clang 14
    const std::string shape = " m=" + std::to_string(m) + " dim=" + std::to_string(dim);
    for (const bool accumulate : {false, true}) {
      add("rmsnorm" + shape + (accumulate ? " accumulate" : ""), [=](const KernelTable& t, int threads) {
        return RmsNorm(t, threads, m, dim, DType::kBF16, 0, accumulate);
      });
    }
    add("rmsnorm faint" + shape, [=](const KernelTable& t, int threads) {
      return RmsNorm(t, threads, m, dim, DType::kBF16, 0, false, true);
    });
    add("rmsnorm f32 weight + 1" + shape, [=](const KernelTable& t, int threads) {
      return RmsNorm(t, threads, m, dim, DType::kF32, 1, false);
    });
    add("embedding" + shape, [=](const KernelTable& t, int threads) {
      return Embedding(t, threads, m, dim, DType::kBF16, 1);
    });
    add("embedding scaled" + shape, [=](const KernelTable& t, int threads) {
      return Embedding(t, threads, m, dim, DType::kBF16, std::sqrt(static_cast<float>(dim)));
    });
    add("embedding f32 scaled" + shape, [=](const KernelTable& t, int threads) {
      return Embedding(t, threads, m, dim, DType::kF32, 3.5f);
    });
  }
  // Norms of heads are of many short rows.
  for (const auto& [m, dim] :
       {std::pair<int64_t, int64_t>{37, 128}, {5, 192}, {513, 64}, {333, 256}, {7, 2304}}) {
    const std::string shape = " m=" + std::to_string(m) + " dim=" + std::to_string(dim);
    for (const bool accumulate : {false, true}) {
      add("rmsnorm + 1" + shape + (accumulate ? " accumulate" : ""),
          [m = m, dim = dim, accumulate](const KernelTable& t, int threads) {
            return RmsNorm(t, threads, m, dim, DType::kBF16, 1, accumulate);
          });
    }
  }
  for (const int64_t count : {1, 15, 64, 1000, 40001}) {
    const std::string shape = " count=" + std::to_string(count);
    add("add" + shape, [=](const KernelTable& t, int threads) { return Add(t, threads, count); });
    add("gated silu" + shape, [=](const KernelTable& t, int threads) {
      return Gated(t, threads, count, Activation::kSilu);
    });
    add("gated gelu" + shape, [=](const KernelTable& t, int threads) {
      return Gated(t, threads, count, Activation::kGeluTanh);
    });
    add("adamw" + shape, [=](const KernelTable& t, int threads) { return AdamW(t, threads, count); });
    add("adamw8" + shape, [=](const KernelTable& t, int threads) { return AdamW8(t, threads, count, 1); });
    add("sum_squares" + shape,
        [=](const KernelTable& t, int threads) { return SumSquares(t, threads, count); });
    add("to_act" + shape, [=](const KernelTable& t, int threads) { return ToAct(t, threads, count); });
  }
  // Second moments that are, squared, near either end of what a float holds.
  for (const double unit : {1e-16, 1e19})
    add("adamw8 count=1001 unit=" + std::to_string(std::lround(std::log10(unit))),
        [=](const KernelTable& t, int threads) { return AdamW8(t, threads, 1001, unit); });
  for (const auto& [rows, width, stride] : {std::array<int64_t, 3>{7, 40, 80}, {5, 13, 26}, {3, 64, 72}}) {
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      const std::string of = activation == Activation::kSilu ? "" : " gelu";
      add("gated" + of + " rows=" + std::to_string(rows) + " width=" + std::to_string(width),
          [rows = rows, width = width, stride = stride, activation](const KernelTable& t, int threads) {
            return GatedRows(t, threads, rows, width, stride, activation);
          });
    }
  }
  // Of the last no part is whole vectors.
  for (const auto& width : {std::array<int64_t, kMostColumns>{64, 16, 16},
                            {24, 24, 24},
                            {40, 0, 0},
                            {40, 24, 0},
                            {2048, 8, 16},
                            {13, 5, 7}}) {
    add("columns " + std::to_string(width[0]) + " " + std::to_string(width[1]) + " " +
            std::to_string(width[2]),
        [width](const KernelTable& t, int threads) { return Columns(t, threads, 21, width); });
  }
  for (const int64_t dim : {2, 6, 32, 64, 100, 128, 256}) {
    for (const bool inverse : {false, true}) {
      add("rope d=" + std::to_string(dim) + (inverse ? " inverse" : ""),
          [=](const KernelTable& t, int threads) { return Rope(t, threads, 3, dim, dim, inverse); });
    }
  }
  // Less than a head turns: by vectors and one by one, where all heads begin aligned and where not.
  for (const auto& [dim, rotary] :
       {std::pair<int64_t, int64_t>{128, 96}, {96, 48}, {64, 32}, {100, 32}, {6, 2}}) {
    for (const bool inverse : {false, true}) {
      add("rope d=" + std::to_string(dim) + " of which " + std::to_string(rotary) +
              (inverse ? " inverse" : ""),
          [dim = dim, rotary = rotary, inverse](const KernelTable& t, int threads) {
            return Rope(t, threads, 3, dim, rotary, inverse);
          });
    }
  }
  for (Case& c : ElementwiseExtremesCases()) cases.push_back(std::move(c));
  return cases;
}

}  // namespace nibble::kernels::check
