#include "engine/checkpoint_text.h"

#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/line.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

// A number, or one of the three strings JSON needs for the others.
bool ReadNumber(const json& object, const char* key, double& value) {
  const auto it = object.find(key);
  if (it == object.end()) return false;
  if (it->is_number()) {
    value = it->get<double>();
    return true;
  }
  if (*it == "nan")
    value = std::numeric_limits<double>::quiet_NaN();
  else if (*it == "inf")
    value = std::numeric_limits<double>::infinity();
  else if (*it == "-inf")
    value = -std::numeric_limits<double>::infinity();
  else
    return false;
  return true;
}

bool ReadInteger(const json& object, const char* key, int64_t& value) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) return false;
  value = it->get<int64_t>();
  return true;
}

bool ReadText(const json& object, const char* key, std::string& value) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string()) return false;
  value = it->get<std::string>();
  return true;
}

std::string FileEntry(const CheckpointManifest::File& file) {
  return Line().Text("name", file.name).Integer("size", file.bytes).Text("sha256", file.sha256).Take();
}

// One that training could have: a power of two, and not yet due to grow.
bool ReadLossScale(const json& manifest, LossScale& out) {
  if (!ReadNumber(manifest, "loss_scale", out.scale) ||
      !ReadInteger(manifest, "loss_scale_good_steps", out.good_steps)) {
    return false;
  }
  int exponent = 0;
  return out.scale >= 1 && out.scale <= LossScale::kLargest && std::frexp(out.scale, &exponent) == 0.5 &&
         out.good_steps >= 0 && out.good_steps < LossScale::kGrowthSteps;
}

bool ReadFiles(const json& manifest, std::vector<CheckpointManifest::File>& out) {
  const auto files = manifest.find("files");
  if (files == manifest.end() || !files->is_array() || files->size() != 2) return false;
  std::set<std::string> seen;
  for (const json& entry : *files) {
    CheckpointManifest::File file;
    if (!entry.is_object() || !ReadText(entry, "name", file.name) ||
        !ReadText(entry, "sha256", file.sha256) || !ReadInteger(entry, "size", file.bytes) ||
        (file.name != kStateFile && file.name != kHistoryFile) || !seen.insert(file.name).second) {
      return false;
    }
    out.push_back(std::move(file));
  }
  return true;
}

}  // namespace

std::string ManifestText(const CheckpointManifest& manifest) {
  const CheckpointHead& head = manifest.head;
  std::string files;
  for (const CheckpointManifest::File& file : manifest.files) {
    absl::StrAppend(&files, files.empty() ? "" : ",", FileEntry(file));
  }
  Line line;
  if (head.loss_scale.scale != 1 || head.loss_scale.good_steps != 0) {
    line.Number("loss_scale", head.loss_scale.scale)
        .Integer("loss_scale_good_steps", head.loss_scale.good_steps);
  }
  return line.Text("format", "nibble-checkpoint")
             .Integer("version", kCheckpointVersion)
             .Integer("step", head.step)
             .Integer("updates", head.updates)
             .Integer("skipped_in_a_row", head.skipped_in_a_row)
             .Text("attempt", head.attempt)
             .Text("spec_digest", head.spec_digest)
             .Text("base_digest", head.base_digest)
             .Text("data_digest", head.data_digest)
             .Text("numerics_id", head.numerics_id)
             .Text("seed", std::to_string(head.seed))
             .Number("loss", head.loss)
             .Raw("files", absl::StrCat("[", files, "]"))
             .Take() +
         "\n";
}

std::string ManifestFromText(std::string_view text, CheckpointManifest& out) {
  const json manifest = json::parse(text, nullptr, /*allow_exceptions=*/false);
  CheckpointHead& head = out.head;
  std::string format, seed;
  int64_t version = 0;
  if (!manifest.is_object() || !ReadText(manifest, "format", format) || format != "nibble-checkpoint" ||
      !ReadInteger(manifest, "version", version) || version != kCheckpointVersion) {
    return "is not that of a checkpoint of this version";
  }
  if (!ReadInteger(manifest, "step", head.step) || !ReadInteger(manifest, "updates", head.updates) ||
      !ReadInteger(manifest, "skipped_in_a_row", head.skipped_in_a_row) ||
      !ReadText(manifest, "attempt", head.attempt) || !ReadText(manifest, "spec_digest", head.spec_digest) ||
      !ReadText(manifest, "base_digest", head.base_digest) ||
      !ReadText(manifest, "data_digest", head.data_digest) ||
      !ReadText(manifest, "numerics_id", head.numerics_id) || !ReadText(manifest, "seed", seed) ||
      !absl::SimpleAtoi(seed, &head.seed) || !ReadNumber(manifest, "loss", head.loss) || head.step < 0 ||
      head.updates < 0 || head.updates > head.step || head.skipped_in_a_row < 0) {
    return "lacks a field or has a wrong one";
  }
  if (manifest.contains("loss_scale") && !ReadLossScale(manifest, head.loss_scale))
    return "has a loss scale that is none";
  if (!ReadFiles(manifest, out.files)) return "lists other files than state.bin and history.jsonl";
  return "";
}

std::string RowToJson(const MetricRow& row) {
  return Line()
      .Integer("step", row.step)
      .Number("epoch", row.epoch)
      .Flag("is_eval", row.is_eval)
      .Number("loss", row.loss)
      .Number("grad_norm", row.grad_norm)
      .Number("learning_rate", row.learning_rate)
      .Integer("tokens", row.tokens)
      .Integer("target_tokens", row.target_tokens)
      .Integer("step_time_us", row.step_time_us)
      .Take();
}

bool RowFromJson(std::string_view line, MetricRow& row) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("is_eval") || !object["is_eval"].is_boolean()) return false;
  row.is_eval = object["is_eval"].get<bool>();
  return ReadInteger(object, "step", row.step) && ReadNumber(object, "epoch", row.epoch) &&
         ReadNumber(object, "loss", row.loss) && ReadNumber(object, "grad_norm", row.grad_norm) &&
         ReadNumber(object, "learning_rate", row.learning_rate) &&
         ReadInteger(object, "tokens", row.tokens) &&
         ReadInteger(object, "target_tokens", row.target_tokens) &&
         ReadInteger(object, "step_time_us", row.step_time_us);
}

}  // namespace nibble::engine
