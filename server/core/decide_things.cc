// Data sets, models, adapters and blobs.
#include <set>
#include <string>
#include <string_view>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "server/core/blob_references.h"
#include "server/core/decide_internal.h"
#include "server/core/limits.h"

namespace nibble::core {
namespace {

absl::Status CheckId(const std::string& id, std::string field) {
  if (IsValidId(id)) return absl::OkStatus();
  return Error::Field(Reason::kNameInvalid, std::move(field),
                      "must be 1 to 63 of a-z, 0-9 and inner '-'");
}

absl::Status CheckUnused(const Turn& turn, const std::map<std::string, std::set<std::string>>& users,
                         const std::string& id, std::string_view what) {
  const auto it = users.find(id);
  if (it == users.end() || it->second.empty()) return absl::OkStatus();
  return Error(Reason::kResourceInUse,
               absl::StrCat(std::string(what), "/", id, " is used by ", it->second.size(),
                            it->second.size() == 1 ? " unfinished job" : " unfinished jobs",
                            turn.scope.empty() ? ", among them jobs/" + *it->second.begin() : ""));
}

}  // namespace

Answer DecideThing(Turn& turn, const CreateDataset& c) {
  const Dataset& dataset = c.dataset;
  RETURN_IF_ERROR(CheckId(dataset.id, "dataset_id"));
  const auto known = turn.state.datasets.find(dataset.id);
  if (known != turn.state.datasets.end()) {
    const Dataset& d = known->second;
    if (d.sha256 == dataset.sha256 && d.path == dataset.path && d.tenant == dataset.tenant)
      return dataset.id;
    return Error(Reason::kDatasetExists,
                 absl::StrCat("datasets/", dataset.id, " exists with other content"))
        .ToStatus();
  }
  if (turn.state.datasets.size() >= kMaxDatasets) {
    return Error(Reason::kQuotaExceeded,
                 absl::StrCat("there are ", kMaxDatasets, " data sets already; delete some"))
        .ToStatus();
  }
  if (dataset.path.empty()) {
    RETURN_IF_ERROR(
        CheckBlobs(turn.state, {{dataset.id, dataset.sha256, dataset.size_bytes}}, "dataset"));
  }
  DatasetCreated created{dataset};
  created.dataset.create_unix_us = turn.now.unix_us;
  turn.Emit(std::move(created));
  return dataset.id;
}

Answer DecideThing(Turn& turn, const DeleteDataset& c) {
  const auto it = turn.state.datasets.find(c.dataset_id);
  if (it == turn.state.datasets.end() || !turn.Sees(it->second.tenant)) {
    return Error(Reason::kDatasetNotFound,
                 absl::StrCat("datasets/", c.dataset_id, " does not exist"))
        .ToStatus();
  }
  RETURN_IF_ERROR(CheckUnused(turn, turn.state.dataset_users, c.dataset_id, "datasets"));
  turn.Emit(DatasetDeleted{c.dataset_id});
  return c.dataset_id;
}

Answer DecideThing(Turn& turn, const RegisterModel& c) {
  const Model& model = c.model;
  RETURN_IF_ERROR(CheckId(model.id, "model_id"));
  const auto known = turn.state.models.find(model.id);
  if (known != turn.state.models.end()) {
    const Model& m = known->second;
    if (m.digest == model.digest && m.root_path == model.root_path && m.tenant == model.tenant)
      return model.id;
    return Error(Reason::kModelExists,
                 absl::StrCat("models/", model.id, " exists with other files"))
        .ToStatus();
  }
  if (turn.state.models.size() >= kMaxModels) {
    return Error(Reason::kQuotaExceeded,
                 absl::StrCat("there are ", kMaxModels, " models already; delete some"))
        .ToStatus();
  }
  if (model.files.empty() || model.files.size() > kMaxFilesPerManifest) {
    return Error::Field(Reason::kModelFileInvalid, "manifest",
                        absl::StrCat("has ", model.files.size(), " files; 1 to ",
                                     kMaxFilesPerManifest, " are allowed"))
        .ToStatus();
  }
  if (model.root_path.empty()) RETURN_IF_ERROR(CheckBlobs(turn.state, model.files, "model"));
  ModelRegistered registered{model};
  registered.model.create_unix_us = turn.now.unix_us;
  turn.Emit(std::move(registered));
  return model.id;
}

Answer DecideThing(Turn& turn, const DeleteModel& c) {
  const auto it = turn.state.models.find(c.model_id);
  if (it == turn.state.models.end()) {
    return Error(Reason::kBaseModelNotFound, absl::StrCat("models/", c.model_id, " does not exist"))
        .ToStatus();
  }
  if (!turn.Sees(it->second.tenant)) {
    return Error(Reason::kRoleNotAllowed, absl::StrCat("models/", c.model_id, " was registered by another "
                                                       "project; that one or an administrator may delete it"))
        .ToStatus();
  }
  RETURN_IF_ERROR(CheckUnused(turn, turn.state.model_users, c.model_id, "models"));
  turn.Emit(ModelDeleted{c.model_id});
  return c.model_id;
}

Answer DecideThing(Turn& turn, const DeleteAdapter& c) {
  const auto it = turn.state.adapters.find(c.adapter_id);
  if (it == turn.state.adapters.end() || !turn.Sees(it->second.tenant)) {
    return Error(Reason::kAdapterNotFound,
                 absl::StrCat("adapters/", c.adapter_id, " does not exist"))
        .ToStatus();
  }
  turn.Emit(AdapterDeleted{c.adapter_id});
  return c.adapter_id;
}

Answer DecideThing(Turn& turn, const RecordBlob& c) {
  if (!IsSha256Hex(c.sha256) || c.size_bytes < 0) {
    return Error::Field(Reason::kSpecInvalid, "sha256", "must be 64 lower-case hex digits")
        .ToStatus();
  }
  const int64_t pin_until_us = turn.now.monotonic_us + turn.options().blob_pin_us;
  const auto known = turn.state.blobs.find(c.sha256);
  if (known == turn.state.blobs.end()) {
    turn.Emit(BlobRecorded{c.sha256, c.size_bytes, pin_until_us});
  } else if (known->second.size_bytes != c.size_bytes) {
    return Error(Reason::kDigestMismatch,
                 absl::StrCat("blob ", c.sha256, " has ", known->second.size_bytes, " bytes, not ",
                              c.size_bytes))
        .ToStatus();
  } else {
    turn.Emit(BlobPinned{c.sha256, pin_until_us});
  }
  const bool known_of = known != turn.state.blobs.end() && known->second.projects.count(c.project) > 0;
  if (!c.project.empty() && !known_of) turn.Emit(BlobShown{c.sha256, c.project});
  return c.sha256;
}

// What is looked for is a few, what refers is as long as the history: so these are kept, and those passed by.
Answer DecideThing(Turn& turn, const ForgetBlobs& c) {
  std::set<std::string_view> going;
  for (const std::string& sha256 : c.sha256s) {
    const auto blob = turn.state.blobs.find(sha256);
    if (blob != turn.state.blobs.end() && turn.now.monotonic_us >= blob->second.pin_until_us)
      going.insert(sha256);
  }
  if (going.empty()) return "";
  const std::unordered_set<std::string_view> asked(going.begin(), going.end());
  const auto stays = [&](const std::string& sha256) {
    if (asked.contains(sha256)) going.erase(sha256);
  };
  BlobReferences().Next(turn.state, stays, SIZE_MAX);
  for (const std::string_view sha256 : going) turn.Emit(BlobForgotten{std::string(sha256)});
  return "";
}

}  // namespace nibble::core
