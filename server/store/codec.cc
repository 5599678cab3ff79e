#include "server/store/codec.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/spec/words.h"
#include "server/store/row_fields.h"
#include "server/store/row_writer.h"

namespace nlohmann {

// A missing optional is a missing or null value.
template <typename T>
struct adl_serializer<std::optional<T>> {
  static void to_json(json& j, const std::optional<T>& value) {
    if (value) {
      j = *value;
    } else {
      j = nullptr;
    }
  }
  static void from_json(const json& j, std::optional<T>& value) {
    if (j.is_null()) {
      value.reset();
    } else {
      value = j.get<T>();
    }
  }
};

}  // namespace nlohmann

namespace nibble::spec {

// In the canonical text form of engine/spec, as a string: one schema, kept there.
void to_json(nlohmann::json& j, const TrainSpec& spec) { j = TrainSpecToJson(spec); }
void from_json(const nlohmann::json& j, TrainSpec& spec) {
  absl::StatusOr<TrainSpec> read = TrainSpecFromJson(j.get<std::string>());
  if (!read.ok()) throw std::runtime_error(std::string(read.status().message()));
  spec = *std::move(read);
}
void to_json(nlohmann::json& j, const DeviceProfile& profile) { j = DeviceProfileToJson(profile); }
void from_json(const nlohmann::json& j, DeviceProfile& profile) {
  absl::StatusOr<DeviceProfile> read = DeviceProfileFromJson(j.get<std::string>());
  if (!read.ok()) throw std::runtime_error(std::string(read.status().message()));
  profile = *std::move(read);
}
void from_json(const nlohmann::json& j, PlanChoices& choices) {
  choices.recompute = FromWord(kRecomputeWords, j.value("recompute", "")).value_or(Recompute::kAuto);
  choices.base_cache = FromWord(kBaseCacheWords, j.value("base_cache", "")).value_or(BaseCache::kAuto);
  choices.paged_optimizer = j.value("paged_optimizer", false);
  choices.offload_activations = j.value("offload_activations", false);
  choices.cuda_graphs = j.value("cuda_graphs", false);
  choices.keep_blocks = j.value("keep_blocks", 0);
}

}  // namespace nibble::spec

namespace nibble::core {

using nlohmann::json;

// States by name, so that the file can be read with the sqlite3 shell.
void to_json(json& j, const JobState& state) { j = JobStateName(state); }
void from_json(const json& j, JobState& state) { state = JobStateFromName(j.get<std::string>()); }
void to_json(json& j, const AttemptState& state) { j = AttemptStateName(state); }
void from_json(const json& j, AttemptState& state) {
  state = AttemptStateFromName(j.get<std::string>());
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(FileRef, name, sha256, size_bytes)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Device, id, backend, body, description, uuid,
                                                capacity_bytes, profile, profile_json, fault)

// By hand for the loss, which need not be a number.
void to_json(json& j, const Checkpoint& c) {
  j = json{{"epoch", c.epoch},
           {"step", c.step},
           {"files", c.files},
           {"manifest_sha256", c.manifest_sha256},
           {"size_bytes", c.size_bytes},
           {"loss", c.loss},
           {"create_unix_us", c.create_unix_us}};
}
void from_json(const json& j, Checkpoint& c) {
  c.epoch = j.value("epoch", c.epoch);
  c.step = j.value("step", c.step);
  c.files = j.value("files", c.files);
  c.manifest_sha256 = j.value("manifest_sha256", c.manifest_sha256);
  c.size_bytes = j.value("size_bytes", c.size_bytes);
  if (j.contains("loss") && j["loss"].is_number()) c.loss = j["loss"].get<double>();
  c.create_unix_us = j.value("create_unix_us", c.create_unix_us);
}

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Dataset, id, tenant, display_name, sha256,
                                                size_bytes, rows, format, path, create_unix_us, formats)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Adapter, id, tenant, job_id, model_id, base_digest,
                                                files, step, create_unix_us)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Model, id, tenant, display_name, files, root_path,
                                                digest, tokenizer_digest, config_json,
                                                create_unix_us)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Worker, id, incarnation, past_incarnations, version,
                                                devices, shares_file_system, draining, lost,
                                                lost_unix_us, no_room, register_unix_us,
                                                last_seen_unix_us)
// Fields of an object into a row: what is missing or null keeps its default.
struct FieldReader {
  const json& from;
  template <typename T>
  void operator()(const char* name, T& field) const {
    const auto it = from.find(name);
    if (it != from.end() && !it->is_null()) it->get_to(field);
  }
};

void from_json(const json& j, PlanBytes& plan) {
  FieldReader reader{j};
  store::VisitPlan(reader, plan);
}
void from_json(const json& j, Progress& progress) {
  FieldReader reader{j};
  store::VisitProgress(reader, progress);
}
void from_json(const json& j, Attempt& attempt) {
  FieldReader reader{j};
  store::VisitAttempt(reader, attempt);
}
void from_json(const json& j, Job& job) {
  FieldReader reader{j};
  store::VisitJob(reader, job);
}

}  // namespace nibble::core

namespace nibble::store {
namespace {

using nlohmann::json;

// Texts of users and engines may be cut inside a character; the rest of the row must survive that.
std::string Dump(const json& j) { return j.dump(-1, ' ', false, json::error_handler_t::replace); }

template <typename T>
absl::StatusOr<T> Decode(std::string_view text, const char* what) {
  try {
    return json::parse(text).get<T>();
  } catch (const std::exception& e) {
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat("a row of ", what, " cannot be read: ", e.what()))
        .ToStatus();
  }
}

}  // namespace

void RowWriter::operator()(std::string_view name, const std::vector<core::Checkpoint>& checkpoints) {
  if (checkpoints.empty()) return;
  Key(name);
  text_ += Dump(json(checkpoints));
}

std::string EncodeJob(const core::Job& job) {
  RowWriter row;
  VisitJob(row, job);
  return std::move(row).Take();
}
std::string EncodeCreated(const core::Job& job) {
  RowWriter row;
  VisitCreated(row, job);
  return std::move(row).Take();
}
absl::StatusOr<core::Job> DecodeJob(std::string_view created, std::string_view text) {
  ASSIGN_OR_RETURN(core::Job job, Decode<core::Job>(text, "jobs"));
  try {
    const json fields = json::parse(created);
    core::FieldReader reader{fields};
    VisitCreated(reader, job);
  } catch (const std::exception& e) {
    return Error(Reason::kStoreUnavailable,
                 absl::StrCat("a row of job_specs cannot be read: ", e.what()))
        .ToStatus();
  }
  return job;
}
std::string EncodeAttempt(const core::Attempt& attempt) {
  RowWriter row;
  VisitAttempt(row, attempt);
  return std::move(row).Take();
}
absl::StatusOr<core::Attempt> DecodeAttempt(std::string_view text) {
  return Decode<core::Attempt>(text, "attempts");
}
std::string EncodeWorker(const core::Worker& worker) { return Dump(json(worker)); }
absl::StatusOr<core::Worker> DecodeWorker(std::string_view text) {
  return Decode<core::Worker>(text, "workers");
}
std::string EncodeDataset(const core::Dataset& dataset) { return Dump(json(dataset)); }
absl::StatusOr<core::Dataset> DecodeDataset(std::string_view text) {
  return Decode<core::Dataset>(text, "datasets");
}
std::string EncodeAdapter(const core::Adapter& adapter) { return Dump(json(adapter)); }
absl::StatusOr<core::Adapter> DecodeAdapter(std::string_view text) {
  return Decode<core::Adapter>(text, "adapters");
}
std::string EncodeModel(const core::Model& model) { return Dump(json(model)); }

absl::StatusOr<core::Model> DecodeModel(std::string_view text) {
  ASSIGN_OR_RETURN(core::Model model, Decode<core::Model>(text, "models"));
  if (!model.config_json.empty()) {
    ASSIGN_OR_RETURN(model.config, spec::ParseModelConfig(model.config_json));
  }
  return model;
}

std::string EncodeFields(const std::map<std::string, std::string>& fields) {
  std::string text;
  for (char before = '{'; const auto& [name, value] : fields) {
    text += std::exchange(before, ',');
    AppendQuoted(text, name);
    text += ':';
    AppendQuoted(text, value);
  }
  return fields.empty() ? "{}" : text + "}";
}
absl::StatusOr<std::map<std::string, std::string>> DecodeFields(std::string_view text) {
  return Decode<std::map<std::string, std::string>>(text, "events");
}

}  // namespace nibble::store
