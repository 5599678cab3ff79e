#include "tests/kernels/harness.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/bf16.h"
#include "kernels/counter.h"
#include "kernels/each_op.h"
#include "kernels/fp16.h"

namespace nibble::kernels::check {
namespace {

const char* missing_op = nullptr;

// Stands for an op that a table does not have, and notes that it was wanted.
template <auto kOp>
struct Missing;
template <typename... Args, void (*KernelTable::*kOp)(Context*, Args...)>
struct Missing<kOp> {
  static inline const char* name = nullptr;
  static void Call(Context*, Args...) { missing_op = name; }
};

}  // namespace

Outcome RunCase(const Case& c, const KernelTable& table, int threads) {
  KernelTable whole = table;
#define NIBBLE_FILL(op)                           \
  Missing<&KernelTable::op>::name = #op;          \
  if (whole.op == nullptr) whole.op = Missing<&KernelTable::op>::Call;
  NIBBLE_EACH_OP(NIBBLE_FILL)
#undef NIBBLE_FILL
  missing_op = nullptr;
  Outcome outcome = c.run(whole, threads);
  if (missing_op != nullptr) outcome.missing = missing_op;
  return outcome;
}

TestContext::TestContext(int threads, int64_t workspace_bytes)
    : pool_(threads), workspace_(workspace_bytes, 64) {
  // Kernels must not rely on a clean workspace.
  std::memset(workspace_.data(), 0xFF, static_cast<size_t>(workspace_bytes));
  context_.workspace = workspace_.data();
  context_.workspace_bytes = workspace_bytes;
  context_.pool = &pool_;
}

Tensor::Tensor(DType type, int64_t count)
    : Tensor(type, std::vector<double>(static_cast<size_t>(count),
                                       std::numeric_limits<double>::quiet_NaN())) {}

Tensor::Tensor(DType type, const std::vector<double>& values)
    : type_(type),
      count_(static_cast<int64_t>(values.size())),
      memory_(std::make_unique<Guarded>(count_ * DTypeBytes(type),
                                        DTypeBytes(type))) {
  for (int64_t i = 0; i < count_; ++i) {
    const double value = values[static_cast<size_t>(i)];
    switch (type) {
      case DType::kF64: static_cast<double*>(data())[i] = value; break;
      case DType::kF32: static_cast<float*>(data())[i] = static_cast<float>(value); break;
      case DType::kBF16: static_cast<BF16*>(data())[i] = ToBF16(static_cast<float>(value)); break;
      case DType::kF16: static_cast<FP16*>(data())[i] = ToFP16(static_cast<float>(value)); break;
    }
  }
}

std::vector<double> Tensor::Values() const {
  std::vector<double> values(static_cast<size_t>(count_));
  for (int64_t i = 0; i < count_; ++i) {
    double& value = values[static_cast<size_t>(i)];
    switch (type_) {
      case DType::kF64: value = static_cast<const double*>(data())[i]; break;
      case DType::kF32: value = static_cast<double>(static_cast<const float*>(data())[i]); break;
      case DType::kBF16:
        value = static_cast<double>(ToFloat(static_cast<const BF16*>(data())[i]));
        break;
      case DType::kF16:
        value = static_cast<double>(ToFloat(static_cast<const FP16*>(data())[i]));
        break;
    }
  }
  return values;
}

std::vector<double> Normal(int64_t count, uint64_t seed, double scale) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    // The sum of four uniform numbers is near enough, and most of the checks' time is spent here.
    const uint64_t bits = CounterBits(seed, 1, static_cast<uint64_t>(i));
    double sum = 0;
    for (int part = 0; part < 4; ++part) sum += static_cast<double>(bits >> (16 * part) & 0xFFFF);
    const double normal = (sum * 0x1p-16 - 2) * 1.7320508075688772;
    values[static_cast<size_t>(i)] =
        static_cast<double>(ToFloat(ToBF16(static_cast<float>(scale * normal))));
  }
  return values;
}

void Comparison::Worse(double share, const std::string& what) {
  if (!(share <= outcome_.error)) outcome_.error = std::isnan(share) ? 1e30 : share;
  if (!(share <= 1)) {
    if (!outcome_.failure.empty()) outcome_.failure += "; ";
    outcome_.failure += what;
  }
}

void Comparison::Add(const std::string& name, const Tensor& got, const Tensor& want, double tolerance) {
  Guard(name, got.Intact());
  const std::vector<double> a = got.Values(), b = want.Values();
  double squares = 0;
  for (const double value : b) squares += value * value;
  const double rms = b.empty() ? 0 : std::sqrt(squares / static_cast<double>(b.size()));
  double worst = 0;
  size_t at = 0, first_off = 0, off = 0;  // where it is off most, where first, how often
  for (size_t i = 0; i < b.size(); ++i) {
    const double bound = tolerance * (std::fabs(b[i]) + rms) + 1e-30;
    const double share = a[i] == b[i] ? 0 : std::fabs(a[i] - b[i]) / bound;
    if (!(share <= 1) && off++ == 0) first_off = i;
    if (!(share <= worst) && !std::isnan(worst)) {
      worst = share;
      at = i;
    }
    uint64_t bits;
    std::memcpy(&bits, &a[i], 8);
    outcome_.digest = CounterMix(outcome_.digest ^ bits) + 1;
  }
  if (!b.empty())
    Worse(worst, name + "[" + std::to_string(at) + "] = " + std::to_string(a[at]) + ", want " +
                     std::to_string(b[at]) + ", " + std::to_string(off) + " of " + std::to_string(b.size()) +
                     " off, the first at " + std::to_string(first_off));
}

void Comparison::AddScalar(const std::string& name, double got, double want, double tolerance) {
  uint64_t bits;
  std::memcpy(&bits, &got, 8);
  outcome_.digest = CounterMix(outcome_.digest ^ bits) + 1;
  Worse(got == want ? 0 : std::fabs(got - want) / (tolerance * std::fabs(want)),
        name + " = " + std::to_string(got) + ", want " + std::to_string(want));
}

void Comparison::Guard(const std::string& name, bool intact) {
  if (!intact) Worse(2, name + ": written outside of its array");
}

double ActTolerance(const KernelTable& table) {
  switch (table.act) {
    case DType::kBF16: return 0x1p-7;
    case DType::kF16: return 0x1p-10;
    case DType::kF32: return 2e-5;
    case DType::kF64: break;
  }
  return 1e-12;
}

bool MultipliesInFixedPoint(const KernelTable& table) {
  return std::strcmp(table.body, "avx2") == 0 || std::strcmp(table.body, "avx512_vnni") == 0;
}

bool MultipliesOneRowInFixedPoint(const KernelTable& table, const WeightView& w) {
  constexpr int64_t kBlock = 64;
  const bool four_bits =
      w.type == QuantType::kNF4 || w.type == QuantType::kFP4 || w.type == QuantType::kINT4;
  const bool body = MultipliesInFixedPoint(table) || std::strncmp(table.body, "avx512", 6) == 0 ||
                    std::strncmp(table.body, "amx", 3) == 0;
  return body && four_bits && w.k % kBlock == 0 && w.block % kBlock == 0;
}

bool IsCuda(const KernelTable& table) { return std::strncmp(table.name, "cuda", 4) == 0; }

std::vector<Case> AllCases() {
  std::vector<Case> all;
  for (auto part : {LinearCases(), AttentionCases(), ElementwiseCases(), LossCases()})
    for (Case& c : part) all.push_back(std::move(c));
  return all;
}

}  // namespace nibble::kernels::check
