#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/data/dataset.h"
#include "engine/spec/model_config.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

absl::StatusOr<DataReport> Validate(const ValidateOptions& options) {
  ASSIGN_OR_RETURN(const std::string spec_json, ReadFile(options.spec_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string config_json,
                   ReadFile(JoinPath(options.model_dir, "config.json"), kMaxConfigBytes));
  ASSIGN_OR_RETURN(const spec::ModelConfig model, spec::ParseModelConfig(config_json));
  ASSIGN_OR_RETURN(spec::TrainSpec spec, spec::TrainSpecFromJson(spec_json));
  ASSIGN_OR_RETURN(spec, spec::ResolveTrainSpec(std::move(spec), model));
  ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(options.model_dir));
  ASSIGN_OR_RETURN(Dataset data, LoadDataset(options.dataset, options.eval_dataset, tokenizer, spec,
                                             {model.vocab_size, DirName(options.out_path)}));
  return std::move(data.report);
}

std::string ErrorToJson(const absl::Status& status) {
  using nlohmann::json;
  json violations = json::array();
  for (const FieldViolation& v : StatusViolations(status)) {
    violations.push_back({{"field", v.field}, {"description", v.description}});
  }
  const Reason reason = StatusReason(status);
  const json error = {
      {"reason",
       std::string(ReasonName(reason == Reason::kUnspecified ? Reason::kInternal : reason))},
      {"message", std::string(status.message())},
      {"metadata", StatusMetadata(status)},
      {"violations", violations}};
  return json{{"error", error}}.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

absl::Status RunValidate(const ValidateOptions& options) {
  const auto report = Validate(options);
  RETURN_IF_ERROR(WriteFileAtomic(
      options.out_path, report.ok() ? DataReportToJson(*report) : ErrorToJson(report.status())));
  return report.status();
}

}  // namespace nibble::engine
