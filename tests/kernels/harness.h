// Runs one op of a table on deterministic inputs and compares it with the double-precision reference.
//
// A case is a name ("linear_forward m=13 k=67 ...") and a function that runs it on a table and a number of
// threads. The same cases serve GoogleTest and the program nibble-kernel-check.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "kernels/parallel.h"
#include "tests/kernels/guarded.h"

namespace nibble::kernels::check {

struct Outcome {
  double error = 0;        // worst of all outputs, as a share of its tolerance: good up to 1
  std::string failure;     // guard zones, and the worst output's name
  uint64_t digest = 0;     // of the bits of all outputs
  std::string missing;     // the op that the table does not have; nothing was checked then
  bool ok() const { return error <= 1 && failure.empty() && missing.empty(); }
};

struct Case {
  std::string name;
  std::function<Outcome(const KernelTable& table, int threads)> run;
};

// Runs a case on a table that may lack ops.
Outcome RunCase(const Case& c, const KernelTable& table, int threads);

// All parity cases.
std::vector<Case> AllCases();
std::vector<Case> LinearCases();
std::vector<Case> AttentionCases();
std::vector<Case> ElementwiseCases();
std::vector<Case> ElementwiseExtremesCases();  // among them
std::vector<Case> LossCases();

// A context with a guarded workspace and its own pool.
class TestContext {
 public:
  TestContext(int threads, int64_t workspace_bytes);
  Context* get() { return &context_; }
  bool Intact() const { return workspace_.Intact(); }

 private:
  ThreadPool pool_;
  Guarded workspace_;
  Context context_;
};

// Values as doubles that bf16 holds exactly, and the same in a table's type.
class Tensor {
 public:
  Tensor(DType type, int64_t count);                                  // an output, filled with NaN
  Tensor(DType type, const std::vector<double>& values);

  void* data() const { return memory_->data(); }
  int64_t count() const { return count_; }
  bool Intact() const { return memory_->Intact(); }
  std::vector<double> Values() const;

 private:
  DType type_;
  int64_t count_;
  std::unique_ptr<Guarded> memory_;
};

// `count` roughly normal deviates times `scale`, rounded to bf16.
std::vector<double> Normal(int64_t count, uint64_t seed, double scale = 1);

// Collects outputs of the tested table beside the reference's.
class Comparison {
 public:
  // Every |got - want| must be at most tolerance * (|want| + root mean square of want).
  void Add(const std::string& name, const Tensor& got, const Tensor& want, double tolerance);
  void AddScalar(const std::string& name, double got, double want, double tolerance);
  void Guard(const std::string& name, bool intact);
  Outcome Result() const { return outcome_; }

 private:
  void Worse(double share, const std::string& what);
  Outcome outcome_;
};

// What an output of the table's act type may be off by: bf16 rounding of inputs' products and of the
// result, or float's.
double ActTolerance(const KernelTable& table);
// Whether frozen weights are multiplied as integers with a scale per block (kernels/cpu/body/fixed.h).
bool MultipliesInFixedPoint(const KernelTable& table);
// Whether this one is with one row (kernels/cpu/body/gemv_block.h).
bool MultipliesOneRowInFixedPoint(const KernelTable& table, const WeightView& w);

// Which formulas say what an op of the table may use of the workspace: kernels/cuda/workspace.h or
// kernels/cpu/workspace.h.
bool IsCuda(const KernelTable& table);

}  // namespace nibble::kernels::check
