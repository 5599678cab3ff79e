// nibble_job.yaml, which every adapter carries, goes the whole way back: engine, recipe reader, API, spec.
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/file.h"
#include "client/recipe.h"
#include "engine/model/adapter.h"
#include "engine/spec/testing/no_defaults.h"
#include "nibble/v1/job.pb.h"
#include "server/rpc/convert_spec.h"

namespace nibble {
namespace {

using nlohmann::json;
using spec::TrainSpec;

// Together they have something else than the default in every field; some cannot stand beside each other.
std::vector<TrainSpec> Specs() {
  TrainSpec b;
  b.target_modules = {spec::Module::kV};
  b.quant = spec::QuantKind::kBF16;
  b.lr_schedule = spec::LrSchedule::kLinear;
  b.warmup_ratio = 0.25;
  b.evals_per_epoch = 2;
  b.saves_per_epoch = 0.5;
  b.format = "text";
  return {spec::NoDefaults(), b};
}

// What the recipe leaves open; it does not change the result.
const std::set<std::string> kLeftOpen = {"recompute", "base_cache", "data_rows"};

TrainSpec ReadBack(const TrainSpec& spec) {
  engine::AdapterExport adapter;
  adapter.model.layers = 1;
  adapter.model.hidden_size = adapter.model.intermediate_size = 8;
  adapter.model.heads = adapter.model.kv_heads = 1;
  adapter.model.head_dim = 8;
  adapter.spec = spec;
  adapter.config.r = spec.lora_r;
  adapter.config.target_modules = spec.target_modules;
  adapter.config.base_model_name = "models/m";
  const std::vector<float> zeros(static_cast<size_t>(spec.lora_r) * 8);
  for (const spec::Module module : spec.target_modules) {
    adapter.pairs.push_back({0, module, zeros.data(), zeros.data()});
  }
  const TempDir dir;
  const auto files = engine::ExportAdapter(dir.path(), adapter);
  EXPECT_TRUE(files.ok()) << files.status();
  const auto text = ReadFile(dir.Join("nibble_job.yaml"), 1 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  const auto recipe = client::ReadRecipe(*text, "nibble_job.yaml", "/", {"datasets=datasets/d"});
  EXPECT_TRUE(recipe.ok()) << recipe.status();
  if (!recipe.ok()) return {};
  v1::JobSpec job;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(recipe->spec_json, &job).ok());
  const auto read = server::ToTrainSpec(job);
  EXPECT_TRUE(read.ok()) << read.status();
  return read.ok() ? *read : TrainSpec();
}

TEST(RepeatRecipe, EveryFieldComesBack) {
  const json defaults = json::parse(spec::TrainSpecToJson(TrainSpec()));
  std::set<std::string> changed;
  for (const TrainSpec& spec : Specs()) {
    const json wanted = json::parse(spec::TrainSpecToJson(spec));
    const json read = json::parse(spec::TrainSpecToJson(ReadBack(spec)));
    for (const auto& [key, value] : wanted.items()) {
      if (kLeftOpen.contains(key)) continue;
      EXPECT_EQ(read.value(key, json()), value) << key;
      if (defaults.value(key, json()) != value) changed.insert(key);
    }
  }
  for (const auto& [key, value] : defaults.items()) {
    EXPECT_TRUE(kLeftOpen.contains(key) || changed.contains(key)) << key << " has its default in every spec";
  }
}

}  // namespace
}  // namespace nibble
