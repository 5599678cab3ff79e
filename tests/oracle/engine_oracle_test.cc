// The engine against transformers and PEFT on tiny models (fixtures/tiny-*, fixtures/ten-steps).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/spec/checkpoint_tensors.h"
#include "kernels/tables.h"
#include "tests/oracle/fixture.h"
#include "tests/oracle/rig.h"

namespace nibble::oracle {
namespace {

namespace fs = std::filesystem;

// A folder for one test, gone with it.
class Scratch {
 public:
  Scratch()
      : path_(fs::temp_directory_path() /
              ("nibble-oracle-" + std::to_string(::getpid()) + "-" +
               testing::UnitTest::GetInstance()->current_test_info()->name())) {
    for (char& c : name_ = path_.filename().string()) c = c == '/' ? '-' : c;
    path_ = path_.parent_path() / name_;
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
  std::string name_;
};

// A fixture's model directory under another of its configs.
std::string ModelDir(const Scratch& scratch, const std::string& model, const std::string& variant) {
  const std::string from = FixturePath(model), to = scratch / "model";
  const bool plain = variant == "default" || variant == "nf4";
  fs::create_directories(to);
  fs::copy_file(from + (plain ? "/config.json" : "/config." + variant + ".json"), to + "/config.json");
  fs::copy_file(from + "/model.safetensors", to + "/model.safetensors");
  return to;
}

struct LogitsCase {
  const char* model;
  const char* variant;
};

void PrintTo(const LogitsCase& which, std::ostream* out) { *out << which.model << " " << which.variant; }

std::string CaseName(const testing::TestParamInfo<LogitsCase>& info) {
  std::string name = std::string(info.param.model) + "_" + info.param.variant;
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

class LogitsOracle : public testing::TestWithParam<LogitsCase> {};

// Both documents packed into one micro-batch; transformers saw them one by one.
void ExpectLogits(const LogitsCase& which, const kernels::KernelTable& table, double tolerance,
                  int32_t tokens = 256) {
  const Scratch scratch;
  const std::string variant = which.variant;
  const std::string own = FixturePath(std::string(which.model) + "/expected." + variant + ".safetensors");
  const auto expected =
      Fixture::Open(fs::exists(own) ? own : FixturePath(std::string(which.model) + "/expected.safetensors"));
  RigOptions options;
  options.model_dir = ModelDir(scratch, which.model, variant);
  options.cache_dir = scratch / "cache";
  options.table = &table;
  options.tokens = tokens;
  options.quant = variant == "nf4" ? spec::QuantKind::kNF4 : spec::QuantKind::kBF16;
  const auto rig = Rig::Open(options);
  ASSERT_TRUE(rig.ok()) << rig.status();
  const Documents documents = {expected.Ints("ids.0"), expected.Ints("ids.1")};
  const std::vector<float> logits = (*rig)->Logits(documents);
  std::vector<float> theirs;
  for (const char* document : {"0", "1"}) {
    const auto part = expected.Floats(variant + ".logits." + document);
    theirs.insert(theirs.end(), part.begin(), part.end());
  }
  const double distance = RelativeL2(logits, theirs);
  std::printf("%s %s %s: %.2e\n", which.model, which.variant, table.name, distance);
  EXPECT_LE(distance, tolerance);

  if (variant == "nf4") return;
  double nll = 0;
  for (const char* document : {"0", "1"}) {
    for (const float value : expected.Floats(variant + ".nll." + document)) nll += value;
  }
  EXPECT_NEAR((*rig)->LossSum(documents), nll, tolerance * nll);
}

TEST_P(LogitsOracle, RefInFp32) { ExpectLogits(GetParam(), kernels::RefTable(), 1e-4); }
TEST_P(LogitsOracle, CpuInBf16) { ExpectLogits(GetParam(), kernels::CpuTable(), 2e-2); }
// Tensors of micro-batches as short as these lie beside the adapter.
TEST_P(LogitsOracle, CpuInBf16OfShortMicroBatches) {
  ExpectLogits(GetParam(), kernels::CpuTable(), 2e-2, 64);
}

INSTANTIATE_TEST_SUITE_P(
    Models, LogitsOracle,
    testing::Values(LogitsCase{"tiny-llama", "default"}, LogitsCase{"tiny-llama", "rope-llama3"},
                    LogitsCase{"tiny-llama", "rope-linear"}, LogitsCase{"tiny-llama", "rope-yarn"},
                    LogitsCase{"tiny-llama", "rope-long"}, LogitsCase{"tiny-llama", "sliding-window"},
                    LogitsCase{"tiny-llama", "nf4"}, LogitsCase{"tiny-qwen2", "default"},
                    LogitsCase{"tiny-qwen3", "default"}, LogitsCase{"tiny-gemma", "default"},
                    LogitsCase{"tiny-gemma2", "default"}, LogitsCase{"tiny-gemma3", "default"},
                    LogitsCase{"tiny-gemma3", "by-kind"}, LogitsCase{"tiny-phi3", "default"},
                    LogitsCase{"tiny-phi3", "sliding-window"}, LogitsCase{"tiny-phi3", "nf4"},
                    LogitsCase{"tiny-phi3", "longrope"}, LogitsCase{"tiny-phi3", "longrope-short"},
                    LogitsCase{"tiny-gemma3-vision", "default"}, LogitsCase{"tiny-smollm3", "default"}),
    CaseName);

// ---- ten optimizer steps ----

// By kind of model.
class TenSteps : public testing::TestWithParam<const char*> {
 protected:
  TenSteps()
      : steps_(std::string(GetParam()) == "llama" ? "ten-steps" : std::string("ten-steps-") + GetParam()),
        expected_(nlohmann::json::parse(ReadFileOrDie(FixturePath(steps_ + "/expected.json")))),
        ids_(Fixture::Open(FixturePath("ten-steps/ids.safetensors"))) {}

  std::vector<Documents> Steps() const {
    const std::vector<int64_t> shape = ids_.Shape("ids");
    const std::vector<int32_t> flat = ids_.Ints("ids");
    std::vector<Documents> steps(shape[0]);
    auto next = flat.begin();
    for (Documents& documents : steps) {
      for (int64_t d = 0; d < shape[1]; ++d, next += shape[2]) {
        documents.emplace_back(next, next + shape[2]);
      }
    }
    return steps;
  }

  std::unique_ptr<Rig> Open(const kernels::KernelTable& table) {
    RigOptions options;
    options.model_dir = ModelDir(scratch_, std::string("tiny-") + GetParam(), "default");
    options.cache_dir = scratch_ / "cache";
    options.adapter_dir = FixturePath(steps_);
    options.table = &table;
    options.max_grad_norm = expected_.at("max_grad_norm");
    auto rig = Rig::Open(options);
    CHECK_OK(rig.status());
    return *std::move(rig);
  }

  const Scratch scratch_;
  const std::string steps_;
  const nlohmann::json expected_;
  const Fixture ids_;
};

TEST_P(TenSteps, RefInFp32) {
  const auto rig = Open(kernels::RefTable());
  const double learning_rate = expected_.at("learning_rate");
  double worst_loss = 0, worst_norm = 0;
  size_t i = 0;
  for (const Documents& documents : Steps()) {
    const Rig::StepRow row = rig->Step(documents, learning_rate);
    const auto& theirs = expected_.at("fp32").at(i++);
    const double loss = theirs.at("loss"), norm = theirs.at("grad_norm");
    ASSERT_EQ(row.target_tokens, theirs.at("target_tokens"));
    worst_loss = std::max(worst_loss, std::abs(row.loss / loss - 1));
    worst_norm = std::max(worst_norm, std::abs(row.grad_norm / norm - 1));
  }
  EXPECT_EQ(i, 10u);
  std::printf("ten steps of %s, fp32: loss %.2e, gradient norm %.2e\n", GetParam(), worst_loss, worst_norm);
  EXPECT_LE(worst_loss, 1e-3);
  EXPECT_LE(worst_norm, 1e-2);

  // What was learned, not only how well it did: the distance both adapters went.
  const auto start = Fixture::Open(FixturePath(steps_ + "/adapter_model.safetensors"));
  const auto end = Fixture::Open(FixturePath(steps_ + "/final.safetensors"));
  std::vector<float> ours, theirs;
  for (const engine::AdapterPair& pair : rig->TrainedAdapter().pairs) {
    for (const bool is_a : {true, false}) {
      const std::string name = "base_model.model." + spec::ModulePath(rig->model(), pair.layer, pair.module) +
                               (is_a ? ".lora_A.weight" : ".lora_B.weight");
      const std::vector<float> from = start.Floats(name), to = end.Floats(name);
      const std::vector<float>& now = is_a ? pair.a : pair.b;
      ASSERT_EQ(now.size(), to.size()) << name;
      for (size_t e = 0; e < now.size(); ++e) {
        ours.push_back(now[e] - from[e]);
        theirs.push_back(to[e] - from[e]);
      }
    }
  }
  ASSERT_EQ(ours.size(), [&] {
    size_t elements = 0;
    for (const std::string& name : end.Names()) elements += end.Floats(name).size();
    return elements;
  }());
  const double distance = RelativeL2(ours, theirs);
  std::printf("ten steps of %s, fp32: learned difference %.2e\n", GetParam(), distance);
  EXPECT_LE(distance, 2e-2);
}

TEST_P(TenSteps, CpuInBf16) {
  const auto rig = Open(kernels::CpuTable());
  const double learning_rate = expected_.at("learning_rate");
  double worst_loss = 0, worst_norm = 0;
  size_t i = 0;
  for (const Documents& documents : Steps()) {
    const Rig::StepRow row = rig->Step(documents, learning_rate);
    const double loss = expected_.at("bf16").at(i).at("loss");
    const double norm = expected_.at("bf16").at(i).at("grad_norm");
    const double fp32_norm = expected_.at("fp32").at(i).at("grad_norm");
    ++i;
    EXPECT_LE(std::abs(row.loss / loss - 1), 1e-2) << "step " << i;
    EXPECT_LE(std::abs(row.grad_norm - norm), std::max(5e-2 * norm, 2 * std::abs(norm - fp32_norm)))
        << "step " << i;
    worst_loss = std::max(worst_loss, std::abs(row.loss / loss - 1));
    worst_norm = std::max(worst_norm, std::abs(row.grad_norm / norm - 1));
  }
  std::printf("ten steps of %s, bf16: loss %.2e, gradient norm %.2e\n", GetParam(), worst_loss, worst_norm);
}

INSTANTIATE_TEST_SUITE_P(Kinds, TenSteps,
                         testing::Values("llama", "gemma2", "gemma3", "gemma3-vision", "phi3"),
                         [](const auto& info) {
                           const std::string kind = info.param;
                           return kind.substr(0, kind.find('-')) +
                                  (kind.ends_with("vision") ? "_vision" : "");
                         });

}  // namespace
}  // namespace nibble::oracle
