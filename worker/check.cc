#include "worker/check.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "worker/engine_process.h"

namespace nibble::worker {
namespace {

using nlohmann::json;

constexpr int64_t kMaxReportBytes = int64_t{4} << 20;

int64_t PlannedSteps(const json& report, const spec::TrainSpec& spec) {
  for (const char* key :
       {"planned_steps", spec.sample_packing ? "steps_packed" : "steps_unpacked"}) {
    const auto it = report.find(key);
    if (it != report.end() && it->is_number_integer()) return it->get<int64_t>();
  }
  return 0;
}

CheckEnded Failed(const AttemptKey& key, Reason reason, std::string message, bool infrastructure) {
  CheckEnded ended;
  ended.key = key;
  ended.reason = std::string(ReasonName(reason));
  ended.message = std::move(message);
  ended.infrastructure = infrastructure;
  return ended;
}

bool IsInfrastructure(Reason reason) {
  return reason == Reason::kUnspecified || reason == Reason::kInternal ||
         reason == Reason::kStorageFull || reason == Reason::kOutOfMemory ||
         reason == Reason::kEngineFailed;
}

// The engine's last words are "nibble-engine: message (REASON)"; anything else is its own trouble.
CheckEnded FromRefusal(const AttemptKey& key, const ProcessExit& exit,
                       const std::string& log_file) {
  static constexpr std::string_view kPrefix = "nibble-engine: ";
  const std::string tail = TailOfFile(log_file, 8000);
  const size_t begin = tail.rfind(kPrefix);
  const size_t bracket = tail.rfind(" (");
  if (exit.code > 0 && begin != std::string::npos && bracket != std::string::npos &&
      bracket > begin && tail.back() == ')') {
    const Reason reason =
        ReasonFromName(std::string_view(tail).substr(bracket + 2, tail.size() - bracket - 3));
    const size_t text = begin + kPrefix.size();
    if (reason != Reason::kUnspecified && bracket >= text) {
      return Failed(key, reason, tail.substr(text, bracket - text), IsInfrastructure(reason));
    }
  }
  return Failed(key, exit.out_of_memory ? Reason::kOutOfMemory : Reason::kEngineFailed,
                absl::StrCat("the check ", exit.message, "; its log ends: ",
                             tail.substr(tail.size() - std::min<size_t>(tail.size(), 1000))),
                true);
}

}  // namespace

CheckEnded RunCheck(const CheckSetup& setup, const Assignment& assignment, const LocalFiles& files,
                    const std::function<bool()>& cancelled) {
  const AttemptKey& key = assignment.key;
  const std::string spec_file = JoinPath(setup.dir, "spec.json");
  const std::string out_file = JoinPath(setup.dir, "report.json");
  const std::string log_file = JoinPath(setup.dir, "check.log");
  absl::Status prepared = MakeDirs(setup.dir);
  if (prepared.ok()) prepared = WriteFileAtomic(spec_file, assignment.spec_json);
  if (!prepared.ok()) return Failed(key, Reason::kInternal, std::string(prepared.message()), true);
  std::vector<std::string> arguments = {
      setup.engine_binary, "validate", "--model-dir", files.model_dir, "--dataset",
      files.dataset_path,  "--spec",   spec_file,     "--out",         out_file};
  if (!files.eval_dataset_path.empty()) {
    arguments.insert(arguments.end(), {"--eval-dataset", files.eval_dataset_path});
  }
  const auto result = RunHelper(arguments, log_file, cancelled);
  if (!result.ok())
    return Failed(key, Reason::kEngineFailed, std::string(result.status().message()), true);
  if (result->exit.code != 0) return FromRefusal(key, result->exit, log_file);
  const auto report = ReadFile(out_file, kMaxReportBytes);
  if (!report.ok())
    return Failed(key, Reason::kEngineFailed, std::string(report.status().message()), true);
  const json parsed = json::parse(*report, nullptr, false);
  if (!parsed.is_object())
    return Failed(key, Reason::kEngineFailed, "the check's report is no JSON object", true);
  CheckEnded ended;
  ended.key = key;
  ended.ok = true;
  ended.report_json = *report;
  ended.planned_steps = PlannedSteps(parsed, assignment.spec);
  return ended;
}

}  // namespace nibble::worker
