// Norms, rotary embedding, gated activations, embedding, optimizer and other elementwise ops.
#pragma once

#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/body/partial.h"
#include "kernels/cpu/body/two.h"
#include "kernels/kernel_table.h"
#include "kernels/parallel.h"

namespace nibble::kernels::cpu::NIBBLE_BODY {

// Elements a piece covers: enough that handing it to a thread is cheap beside it.
constexpr int64_t kPieceElements = 16384;

// fn(first, last) over spans of `count`.
template <typename F>
static void RunSpans(Context* ctx, int64_t count, const F& fn) {
  RunPieces(ctx->pool, (count + kPieceElements - 1) / kPieceElements, [&](int64_t piece, int) {
    const int64_t first = piece * kPieceElements;
    const int64_t last = first + kPieceElements;
    fn(first, last < count ? last : count);
  });
}

// fn(row) over rows of about `width` elements.
template <typename F>
static void RunRows(Context* ctx, int64_t rows, int64_t width, const F& fn) {
  const int64_t rows_per_piece = kPieceElements / (width > 0 ? width : 1) + 1;
  RunPieces(ctx->pool, (rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int) {
    const int64_t last = (piece + 1) * rows_per_piece;
    for (int64_t row = piece * rows_per_piece; row < (last < rows ? last : rows); ++row) fn(row);
  });
}

NIBBLE_INLINE float SumSlots(const Two* sums) {
  return SumLanes(Add(Add(sums[0].a, sums[0].b), Add(sums[1].a, sums[1].b)));
}

template <typename T>
constexpr bool kIsBF16 = false;
template <>
constexpr bool kIsBF16<BF16> = true;

static void RmsNormForward(Context* ctx, void* y, void* rstd, const void* x, ParamView w, int64_t m,
                           int64_t dim, float eps, float unit_offset) {
  KERNEL_CHECK(m >= 0 && dim > 0 && IsReadable(w));
  const F32 offset = Set1(unit_offset);
  WithParam(w, [&]<typename T>(const T* weights) {
    RunRows(ctx, m, dim, [&](int64_t row) {
      const BF16* in = static_cast<const BF16*>(x) + row * dim;
      BF16* out = static_cast<BF16*>(y) + row * dim;
      Two squares[2] = {{Zero(), Zero()}, {Zero(), Zero()}};
      EachTwo(dim, [&] NIBBLE_TWO {
        const Two v = LoadTwo(in + i, lanes);
        squares[slot] = Each(Fma, v, v, squares[slot]);
      });
      const float rms = 1.0f / std::sqrt(SumSlots(squares) / static_cast<float>(dim) + eps);
      if (rstd != nullptr) static_cast<float*>(rstd)[row] = rms;
      const F32 scale = Set1(rms);
      EachTwo(dim, [&] NIBBLE_TWO {
        const Two normed = Each([&](F32 v, F32 weight) { return Mul(Mul(v, scale), Add(weight, offset)); },
                                LoadTwo(in + i, lanes), LoadTwo(weights + i, lanes));
        StoreTwo<kIsBF16<T>>(out + i, normed, lanes);
      });
    });
  });
}

static void RmsNormBackward(Context* ctx, void* dx, bool accumulate, const void* dy, const void* x,
                            ParamView w, const void* rstd, int64_t m, int64_t dim, float unit_offset) {
  KERNEL_CHECK(m >= 0 && dim > 0 && IsReadable(w));
  const F32 offset = Set1(unit_offset);
  WithParam(w, [&]<typename T>(const T* weights) {
    RunRows(ctx, m, dim, [&](int64_t row) {
      const BF16* in = static_cast<const BF16*>(x) + row * dim;
      const BF16* gradient = static_cast<const BF16*>(dy) + row * dim;
      BF16* out = static_cast<BF16*>(dx) + row * dim;
      const float rms = static_cast<const float*>(rstd)[row];
      const auto weighted = [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        return Each([&](F32 d, F32 weight) { return Mul(d, Add(weight, offset)); },
                    LoadTwo(gradient + i, lanes), LoadTwo(weights + i, lanes));
      };
      Two dots[2] = {{Zero(), Zero()}, {Zero(), Zero()}};
      EachTwo(dim, [&] NIBBLE_TWO {
        dots[slot] = Each(Fma, weighted(i, lanes), LoadTwo(in + i, lanes), dots[slot]);
      });
      const F32 scale = Set1(rms), mean = Set1(SumSlots(dots) * rms * rms / static_cast<float>(dim));
      EachTwo(dim, [&] NIBBLE_TWO {
        Two value = Each([&](F32 v, F32 g) { return Mul(scale, NegFma(v, mean, g)); },
                         LoadTwo(in + i, lanes), weighted(i, lanes));
        if (accumulate) value = Each(Add, value, LoadTwo(out + i, lanes));
        StoreTwo<kIsBF16<T>>(out + i, value, lanes);
      });
    });
  });
}

static void AddArrays(Context* ctx, void* out, const void* a, const void* b, int64_t count) {
  RunSpans(ctx, count, [&](int64_t first, int64_t last) {
    EachTwo(last - first, [&] NIBBLE_TWO {
      const Two sum = Each(Add, LoadTwo(static_cast<const BF16*>(a) + first + i, lanes),
                           LoadTwo(static_cast<const BF16*>(b) + first + i, lanes));
      StoreTwo<true>(static_cast<BF16*>(out) + first + i, sum, lanes);
    });
  });
}

// Cosines and sines of `lanes` pairs that lie one behind the other, as LoadTwo has the elements they are for.
NIBBLE_INLINE void LoadAngles(const float* pairs, int64_t lanes, Two* cosines, Two* sines) {
  alignas(64) float some[2 * kTwoLanes] = {};
  if (lanes < kTwoLanes) {
    std::memcpy(some, pairs, static_cast<size_t>(2 * lanes) * sizeof(float));
    pairs = some;
  }
  Two low, high;
  TakeApart(Load(pairs), Load(pairs + kLanes), &low.a, &low.b);
  TakeApart(Load(pairs + 2 * kLanes), Load(pairs + 3 * kLanes), &high.a, &high.b);
  *cosines = TwoOf(low.a, high.a);
  *sines = TwoOf(low.b, high.b);
}

static void Rope(Context* ctx, void* x, const int32_t* positions, const float* cos_sin, int64_t m,
                 int64_t heads, int64_t head_dim, int64_t rotary_dim, bool inverse) {
  KERNEL_CHECK(m >= 0 && heads > 0 && rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim);
  const int64_t half = rotary_dim / 2;
  RunRows(ctx, m, heads * head_dim, [&](int64_t row) {
    const float* angles = cos_sin + positions[row] * rotary_dim;
    BF16* values = static_cast<BF16*>(x) + row * heads * head_dim;
    EachTwo(half, [&] NIBBLE_TWO {
      Two c, s;
      LoadAngles(angles + 2 * i, lanes, &c, &s);
      if (inverse) s = Each(Sub, Two{Zero(), Zero()}, s);
      for (int64_t head = 0; head < heads; ++head) {
        BF16* const low = values + head * head_dim + i;
        const Two a = LoadTwo(low, lanes), b = LoadTwo(low + half, lanes);
        StoreTwo<true>(low, Each(NegFma, b, s, Each(Mul, a, c)), lanes);
        StoreTwo<true>(low + half, Each(Fma, a, s, Each(Mul, b, c)), lanes);
      }
    });
  });
}

// fn(the place in all of a row of a part, that row, its bytes).
template <typename F>
static void EachColumns(Context* ctx, const ColumnsArgs& args, const F& fn) {
  KERNEL_CHECK(args.rows >= 0 && args.AllWidth() > 0);
  RunRows(ctx, args.rows, args.AllWidth(), [&](int64_t row) {
    int64_t at = row * args.AllWidth();
    for (int p = 0; p < kMostColumns; at += args.width[p++]) {
      if (args.width[p] == 0) continue;
      fn(at, static_cast<BF16*>(args.part[p]) + row * args.width[p],
         static_cast<size_t>(args.width[p]) * sizeof(BF16));
    }
  });
}
static void SplitColumns(Context* ctx, const void* all, const ColumnsArgs& args) {
  EachColumns(ctx, args, [&](int64_t at, BF16* part, size_t bytes) {
    __builtin_memcpy(part, static_cast<const BF16*>(all) + at, bytes);
  });
}
static void JoinColumns(Context* ctx, void* all, const ColumnsArgs& args) {
  EachColumns(ctx, args, [&](int64_t at, const BF16* part, size_t bytes) {
    __builtin_memcpy(static_cast<BF16*>(all) + at, part, bytes);
  });
}

// What a gate is multiplied with is act(g) = g sigmoid(kind of g); its derivative is beside.
struct Silu {
  static NIBBLE_INLINE F32 Value(F32 g) { return TimesSigmoid(g, g); }
  static NIBBLE_INLINE void Both(F32 g, F32* value, F32* derivative) {
    const F32 one = Set1(1.0f), sigmoid = TimesSigmoid(one, g);
    *value = Mul(g, sigmoid);
    *derivative = Mul(sigmoid, Fma(g, Sub(one, sigmoid), one));
  }
};
// g sigmoid(2 z), z = c (g + a g^3): the tanh form without its cancellation.
struct GeluTanh {
  static NIBBLE_INLINE F32 Value(F32 g) {
    const F32 near = Near(g);
    return TimesSigmoid(g, Mul(Mul(Set1(2 * kC), near), Fma(Set1(kA), Mul(near, near), Set1(1.0f))));
  }
  static NIBBLE_INLINE void Both(F32 g, F32* value, F32* derivative) {
    const F32 one = Set1(1.0f), near = Near(g), square = Mul(near, near);
    const F32 sigmoid = TimesSigmoid(one, Mul(Mul(Set1(2 * kC), near), Fma(Set1(kA), square, one)));
    const F32 slope = Mul(Set1(2 * kC), Fma(Set1(3 * kA), square, one));
    *value = Mul(g, sigmoid);
    *derivative = Mul(sigmoid, Fma(Mul(near, slope), Sub(one, sigmoid), one));
  }

 private:
  static constexpr float kC = 0.7978845608028654f, kA = 0.044715f;
  // Beyond 64 it is g, or nothing, in every precision; powers would overflow beside a factor of zero.
  static F32 Near(F32 g) { return Max(Set1(-64.0f), Min(Set1(64.0f), g)); }
};

// Dense arrays are one row; else every row is on its own. each(first, last, strided): elements of the dense
// arrays, and where the first is in those with a stride.
template <typename Each>
static void RunGated(Context* ctx, const GatedArgs& args, const Each& each) {
  const bool dense = args.stride == 0 || args.stride == args.width;
  if (dense) {
    RunSpans(ctx, args.rows * args.width,
             [&](int64_t first, int64_t last) { each(first, last, first); });
    return;
  }
  RunRows(ctx, args.rows, args.width, [&](int64_t row) {
    each(row * args.width, (row + 1) * args.width, row * args.stride);
  });
}

// fn(act), of the activation that is asked for.
template <typename F>
static void WithActivation(Activation activation, const F& fn) {
  if (activation == Activation::kSilu)
    fn(Silu{});
  else
    fn(GeluTanh{});
}

static void GatedForward(Context* ctx, void* out, const void* gate, const void* up, const GatedArgs& args) {
  WithActivation(args.activation, [&](auto act) {
    RunGated(ctx, args, [&](int64_t first, int64_t last, int64_t strided) {
      const BF16* const gates = static_cast<const BF16*>(gate) + strided;
      const BF16* const ups = static_cast<const BF16*>(up) + strided;
      BF16* const to = static_cast<BF16*>(out) + first;
      EachTwo(last - first, [=] NIBBLE_TWO {
        const Two value = Each(act.Value, LoadTwo(gates + i, lanes));
        StoreTwo<true>(to + i, Each(Mul, value, LoadTwo(ups + i, lanes)), lanes);
      });
    });
  });
}

static void GatedBackward(Context* ctx, void* dgate, void* dup, const void* dout, const void* gate,
                          const void* up, const GatedArgs& args) {
  WithActivation(args.activation, [&](auto act) {
    RunGated(ctx, args, [&](int64_t first, int64_t last, int64_t strided) {
      const BF16* const gates = static_cast<const BF16*>(gate) + strided;
      const BF16* const ups = static_cast<const BF16*>(up) + strided;
      const BF16* const gradients = static_cast<const BF16*>(dout) + first;
      BF16* const to_gates = static_cast<BF16*>(dgate) + strided;
      BF16* const to_ups = static_cast<BF16*>(dup) + strided;
      EachTwo(last - first, [=] NIBBLE_TWO {
        const Two g = LoadTwo(gates + i, lanes), u = LoadTwo(ups + i, lanes);
        const Two d = LoadTwo(gradients + i, lanes);
        Two value, slope;
        act.Both(g.a, &value.a, &slope.a);
        act.Both(g.b, &value.b, &slope.b);
        StoreTwo<true>(to_gates + i, Each(Mul, Each(Mul, d, u), slope), lanes);
        StoreTwo<true>(to_ups + i, Each(Mul, d, value), lanes);
      });
    });
  });
}

static void EmbeddingForward(Context* ctx, void* out, const int32_t* ids, ParamView table, int64_t m,
                             int64_t dim, float scale) {
  KERNEL_CHECK(IsReadable(table));
  RunRows(ctx, m, dim, [&](int64_t row) {
    BF16* to = static_cast<BF16*>(out) + row * dim;
    const int64_t from = ids[row] * dim, next = row + 1 < m ? ids[row + 1] * dim : from;
    if (table.type == DType::kBF16 && scale == 1) {
      const BF16* const entries = static_cast<const BF16*>(table.data);
      for (int64_t i = 0; i < dim; i += 32) __builtin_prefetch(entries + next + i);
      __builtin_memcpy(to, entries + from, static_cast<size_t>(dim) * sizeof(BF16));
      return;
    }
    for (int64_t i = 0; i < dim; i += kLanes) {
      // Rows lie anywhere: the next one is fetched while this one is copied.
      __builtin_prefetch(static_cast<const char*>(table.data) + (next + i) * DTypeBytes(table.type));
      StoreSome(to + i, Mul(LoadParam(table, from + i, dim - i), Set1(scale)), dim - i);
    }
  });
}

// The constants of a step, formed in double.
struct AdamWFactors {
  explicit AdamWFactors(const AdamWArgs& args)
      : beta1(Of(args.beta1)), beta2(Of(args.beta2)), rest1(Of(1 - args.beta1)), rest2(Of(1 - args.beta2)),
        decay(Of(args.learning_rate * args.weight_decay)), epsilon(Of(args.epsilon)),
        clip(Of(args.gradient_scale)) {
    KERNEL_CHECK(args.step >= 1);
    const auto steps = static_cast<double>(args.step);
    rate = Of(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    correction = Of(1 / (1 - std::pow(args.beta2, steps)));
  }
  // The parameter, decayed already, after its step along these moments.
  F32 Step(F32 value, F32 m, F32 v) const {
    return Sub(value, Div(Mul(rate, m), Add(Sqrt(Mul(v, correction)), epsilon)));
  }
  F32 beta1, beta2, rest1, rest2, rate, correction, decay, epsilon, clip;

 private:
  static F32 Of(double value) { return Set1(static_cast<float>(value)); }
};

static void AdamW(Context* ctx, void* p, const void* g, void* m, void* v, const AdamWArgs& args) {
  const AdamWFactors by(args);
  RunSpans(ctx, args.count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes) {
      const int64_t lanes = last - i;
      float* const param = static_cast<float*>(p) + i;
      float* const moment1 = static_cast<float*>(m) + i;
      float* const moment2 = static_cast<float*>(v) + i;
      const F32 gradient = Mul(LoadSome(static_cast<const float*>(g) + i, lanes), by.clip);
      const F32 m1 = Fma(by.beta1, LoadSome(moment1, lanes), Mul(by.rest1, gradient));
      const F32 m2 = Fma(by.beta2, LoadSome(moment2, lanes), Mul(Mul(by.rest2, gradient), gradient));
      const F32 value = LoadSome(param, lanes);
      StoreSome(moment1, m1, lanes);
      StoreSome(moment2, m2, lanes);
      StoreSome(param, by.Step(NegFma(by.decay, value, value), m1, m2), lanes);
    }
  });
}

static void SumSquares(Context* ctx, double* out, const void* x, int64_t count) {
  constexpr int64_t kPieces = 64;
  double parts[kPieces] = {};
  const auto* values = static_cast<const float*>(x);
  const int64_t span = (count + kPieces - 1) / kPieces;
  const int64_t pieces = count < kPieceElements ? 1 : kPieces;
  RunPieces(ctx->pool, pieces, [&](int64_t group, int) {
    for (int64_t piece = group * kPieces / pieces; piece < (group + 1) * kPieces / pieces; ++piece) {
      const int64_t last = (piece + 1) * span < count ? (piece + 1) * span : count;
      double sums[8] = {};
      int64_t i = piece * span;
      for (; i + 8 <= last; i += 8) {
        for (int64_t j = 0; j < 8; ++j) {
          const auto value = static_cast<double>(values[i + j]);
          sums[j] += value * value;
        }
      }
      for (; i < last; ++i) sums[0] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
      for (const double sum : sums) parts[piece] += sum;
    }
  });
  double sum = 0;
  for (const double part : parts) sum += part;
  *out = sum;
}

static void ToAct(Context* ctx, void* out, const void* in, int64_t count) {
  RunSpans(ctx, count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i += kLanes)
      StoreSome(static_cast<BF16*>(out) + i, LoadSome(static_cast<const float*>(in) + i, last - i), last - i);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_BODY
