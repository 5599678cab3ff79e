#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "client/recipe.h"
#include "client/yaml.h"
#include "engine/data/dataset_rows.h"
#include "engine/model/safetensors.h"
#include "engine/spec/model_config.h"
#include "engine/spec/train_spec.h"
#include "nibble/v1/job.pb.h"
#include "nibble/worker/v1/worker.pb.h"
#include "server/dataset_check.h"
#include "server/job_head.h"
#include "server/model_check.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/worker_convert.h"
#include "tests/fuzz/fuzz.h"
#include "worker/engine_line.h"

namespace nibble::fuzz {
namespace {

constexpr int64_t kDataBytes = 4096;

void Recipe(std::string_view input) {
  const auto recipe = client::ReadRecipe(input, "fuzz.yaml", "/tmp", {});
  if (!recipe.ok()) return;
  v1::JobSpec job;
  Require(google::protobuf::util::JsonStringToMessage(recipe->spec_json, &job).ok(),
          "a recipe became something that is no JobSpec");
}

void Yaml(std::string_view input) {
  client::YamlLimits limits;
  limits.max_values = 1000;
  (void)client::ParseYaml(input, "fuzz.yaml", limits);
}

// A JobSpec in any state: refused, or resolved into a spec that stands for the same job.
void JobSpec(std::string_view input) {
  v1::JobSpec job;
  if (!google::protobuf::util::JsonStringToMessage(std::string(input), &job).ok()) return;
  const auto read = server::ToTrainSpec(job);
  if (!read.ok()) return;
  static const auto model = spec::ParseModelConfig(RepositoryFile("demo/base/config.json"));
  Require(model.ok(), "the demo's config is read");
  const auto train = spec::ResolveTrainSpec(*read, *model);
  if (!train.ok()) return;
  const auto again = server::ToTrainSpec(server::ToJobSpec(*train));
  Require(again.ok() && *again == *train, "a spec does not survive the protobuf form");
}

// What the server lets in, the engine must be able to read: the same rows.
void Dataset(std::string_view input) {
  server::DatasetChecker checker;
  for (size_t at = 0; at < input.size(); at += 1000) {
    if (!checker.Feed(input.substr(at, 1000)).ok()) return;
  }
  const auto facts = checker.Finish();
  if (!facts.ok()) return;
  const auto path =
      std::filesystem::temp_directory_path() / ("nibble-fuzz-" + std::to_string(getpid()));
  std::ofstream(path, std::ios::binary) << input;
  int64_t rows = 0;
  const absl::Status read =
      engine::ForEachRow(path.string(), "rows", [&](int64_t, std::string_view) {
        ++rows;
        return absl::OkStatus();
      });
  std::filesystem::remove(path);
  Require(read.ok() && rows == facts->rows, "server and engine see different rows");
}

void Header(std::string_view input) {
  const auto server = server::CheckSafetensorsHeader("fuzz", input, kDataBytes);
  if (!server.ok()) return;
  Require(engine::ParseSafetensorsHeader("fuzz", input, kDataBytes).ok(),
          "the server accepts a header that the engine refuses");
}

// Whatever a worker counts, the server can compute with it.
void WorkerReport(std::string_view input) {
  worker::v1::ReportProgressRequest request;
  if (!google::protobuf::util::JsonStringToMessage(std::string(input), &request).ok()) return;
  const std::vector<store::StepMetric> metrics = server::ReadMetrics(request);
  core::Job job;
  job.state = core::JobState::kRunning;
  job.progress = server::HeadAfter(server::HeadAfter({}, metrics), metrics);
  if (const auto report = server::ReadReport(request)) {
    const auto* const plan = std::get_if<core::ReportPlan>(&*report);
    if (plan != nullptr) job.progress.planned_steps = plan->planned_steps;
  }
  constexpr int64_t kNowUs = 1'800'000'000'000'000;
  const int64_t end_us = core::EstimatedEndUnixUs(job, kNowUs);
  Require(end_us == 0 || end_us >= kNowUs, "a job ends before now");
}

void EngineLine(std::string_view input) { (void)worker::ParseEngineLine(1, input); }

}  // namespace

std::vector<Target> EdgeTargets() {
  const std::vector<std::string> json_words = {"\"", ":", ",",       "{",       "}",
                                               "[",  "]", "\\u0000", "\\ud800", "1e99"};
  std::vector<Target> targets;
  targets.push_back({"recipe",
                     {RepositoryFile("demo/recipe.yaml")},
                     {"lora_r: ", "datasets:\n", "  - path: x\n", "null", "&a ", "*a",
                      "<<: ", "qlora", "!!binary ", "|\n"},
                     Recipe});
  targets.push_back({"yaml",
                     {"a: [1, {b: &x \"c\"}, *x]\nd: |\n  text\n  more\ne: ~\n"},
                     {"&a ", "*a", "- ", "? ", ": ", "%YAML 1.2\n---\n", "...\n", "!!map ", ">-\n"},
                     Yaml});
  targets.push_back(
      {"job_spec",
       {R"({"baseModel":"models/a","dataset":"datasets/b","lora":{"r":16,"alpha":32,"dropout":0.1,)"
        R"("targetModules":["q_proj","down_proj"],"useRslora":true},"quantization":{"type":"nf4"},)"
        R"("data":{"sequenceLen":128,"format":"text","valSetSize":0.1},"optimizer":{"learningRate":1e-3,)"
        R"("lrScheduler":"linear","warmupSteps":"3"},"training":{"maxSteps":"9","numEpochs":1.5,"seed":"1"}})"},
       json_words,
       JobSpec});
  targets.push_back(
      {"dataset",
       {"{\"text\":\"a\"}\n{\"text\":\"b\"}\r\n\n{\"text\":\"c\"}",
        "[{\"prompt\":\"a\",\"completion\":\"b\"},\n {\"prompt\":\"c\",\"completion\":\"d\"}]"},
       {"\n", "\r\n", ",", "[", "]", "{\"text\":\"x\"}", "\xef\xbb\xbf", "\\\"", " "},
       Dataset});
  targets.push_back({"safetensors_both",
                     {R"({"a":{"dtype":"BF16","shape":[4,16],"data_offsets":[0,128]},)"
                      R"("b":{"dtype":"F32","shape":[992],"data_offsets":[128,4096]}})"},
                     {"BF16", "F64", "\"shape\":[", "data_offsets", "I8", "__metadata__"},
                     Header});
  targets.push_back(
      {"engine_line",
       {R"({"type":"hello","version":1,"numerics_id":"n"})",
        R"({"type":"step","attempt":"a/1","step":3,"loss":1.5,"grad_norm":"inf"})",
        R"({"type":"checkpoint","attempt":"a/1","step":4,"dir":"/d","loss":1})",
        R"({"type":"finished","attempt":"a/1","step":4,"dir":"/d","files":[],"stop_reason":"s"})",
        R"({"type":"failed","attempt":"a/1","reason":"PLAN_EXCEEDED","message":"m"})"},
       json_words,
       EngineLine});
  std::vector<std::string> report_words = json_words;
  report_words.insert(report_words.end(),
                      {"9223372036854775807", "-9223372036854775808", "1e300", "\"NaN\""});
  targets.push_back(
      {"worker_report",
       {R"({"fence":{"jobId":"a","epoch":"1"},"metrics":[{"step":"1","loss":2.5,"tokens":"10","stepTimeUs":"9"},)"
        R"({"step":"2","tokens":"11","targetTokens":"3","stepTimeUs":"8","timeUs":"7","usedBytes":"6",)"
        R"("epochFraction":0.5,"evalLoss":1,"phases":{"linearUs":"5","dataUs":"4"}}],)"
        R"("plan":{"plannedSteps":"100","planJson":"{}","numericsId":"n"}})",
        R"({"checkpoint":{"step":"3","files":[{"name":"f","sizeBytes":"1"}],"loss":1.5}})"},
       report_words,
       WorkerReport});
  return targets;
}

}  // namespace nibble::fuzz
