#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/outside_text.h"
#include "base/status.h"
#include "nibble/v1/dataset.grpc.pb.h"
#include "server/blob_owners.h"
#include "server/blob_store_checks.h"
#include "server/dataset_check.h"
#include "server/meter.h"
#include "server/rooted_files.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/job_request.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

constexpr int32_t kDefaultPreview = 5;
constexpr int32_t kMaxPreview = 100;
// A preview is one message: what does not fit is left out.
constexpr size_t kMaxPreviewBytes = size_t{2} << 20;

absl::StatusOr<const core::Dataset*> FindDataset(const core::State& state, const std::string& id,
                                                 const std::string& scope) {
  const auto it = state.datasets.find(id);
  if (it != state.datasets.end() && Sees(scope, it->second.tenant)) return &it->second;
  return Error(Reason::kDatasetNotFound, absl::StrCat("datasets/", id, " does not exist"))
      .With("name", absl::StrCat("datasets/", id))
      .ToStatus();
}

ReadBytes ReaderOf(Edge& edge, const core::Dataset& dataset) {
  if (!dataset.path.empty()) return RootedReader(dataset.path);
  return [&edge, sha256 = dataset.sha256](int64_t offset, int64_t max_bytes) {
    return edge.blobs->Read(sha256, offset, max_bytes);
  };
}

// Everything but the id, on the pool for whole files. CANCELLED soon after `unwanted` says so.
absl::StatusOr<core::Dataset> CheckRequest(Edge& edge, const v1::CreateDatasetRequest& request,
                                           const Caller& caller, const std::function<bool()>& unwanted) {
  core::Dataset dataset;
  dataset.id = request.dataset_id();
  dataset.tenant = caller.tenant;
  RETURN_IF_ERROR(CheckDisplayName(request.display_name()));
  dataset.display_name = request.display_name();
  if (request.sha256().empty() == request.path().empty()) {
    return Error::Field(Reason::kSpecInvalid, "sha256", "or path must be given, and not both").ToStatus();
  }
  if (!request.path().empty()) {
    ASSIGN_OR_RETURN(const RootedFile file, OpenBelowRoot(edge.model_root, request.path(), "path"));
    if (file.is_directory) {
      return Error::Field(Reason::kPathNotAllowed, "path", "is a directory; name a file").ToStatus();
    }
    dataset.path = file.path;
    dataset.size_bytes = file.size_bytes;
  } else {
    RETURN_IF_ERROR(edge.blobs->Pin(request.sha256()));
    dataset.sha256 = request.sha256();
    ASSIGN_OR_RETURN(dataset.size_bytes, edge.blobs->SizeBytes(dataset.sha256));
  }
  const ReadBytes read = WhileWanted(ReaderOf(edge, dataset), unwanted);
  ASSIGN_OR_RETURN(const DatasetFacts facts, CheckDataset(read));
  dataset.rows = facts.rows;
  dataset.format = facts.format;
  dataset.formats = facts.formats;
  // After the check, which stops early at what is no data set.
  if (!dataset.path.empty()) {
    ASSIGN_OR_RETURN(dataset.sha256, Sha256HexOf(read));
  }
  return dataset;
}

class DatasetServiceImpl final : public v1::DatasetService::CallbackService {
 public:
  explicit DatasetServiceImpl(Edge& edge) : edge_(edge) {}
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* CreateDataset(Context* context, const v1::CreateDatasetRequest* request,
                         v1::Dataset* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      if (!request->dataset_id().empty() && !IsValidId(request->dataset_id())) {
        return done(Error::Field(Reason::kNameInvalid, "dataset_id",
                                 "must be 1 to 63 lower-case letters, digits and inner '-'"));
      }
      const auto check = [=, this] {
        auto dataset = CheckRequest(edge_, *request, caller, [context] { return context->IsCancelled(); });
        if (edge_.meter && !absl::IsCancelled(dataset.status())) edge_.meter->OnDatasetChecked(dataset.ok());
        if (!dataset.ok()) return done(dataset.status());
        Store(*std::move(dataset), done, response);
      };
      // Before a byte of it is read: who names a digest must have had the bytes.
      const bool posted = edge_.loop->Read([=, this, scope = caller.Scope()](const Outcome& outcome) {
        if (!request->sha256().empty() && !MayUse(outcome.state, scope, request->sha256()))
          return done(BlobNotFound(request->sha256()));
        OnFiles(edge_, done, check);
      });
      if (!posted) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/CreateDataset", body);
  }

  Reactor* ValidateDataset(Context* context, const v1::ValidateDatasetRequest* request,
                           v1::ValidateDatasetResponse* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      core::ValidateDataset command;
      auto dataset = ParseName(request->name(), "datasets", "name");
      if (!dataset.ok()) return done(dataset.status());
      auto model = ParseName(request->base_model(), "models", "base_model");
      if (!model.ok()) return done(model.status());
      command.dataset_id = *dataset;
      command.model_id = *model;
      const auto answer = [=](const Outcome& outcome) {
        const core::Job* check = outcome.state.FindJob(outcome.id);
        if (!check) return Error(Reason::kJobNotFound, "the check is gone; ask again").ToStatus();
        response->set_job(ResourceName("jobs", check->id));
        response->set_report_json(check->report_json);
        response->set_pending(!core::IsTerminal(check->state));
        if (check->state != core::JobState::kFailed) return absl::OkStatus();
        const Reason reason = ReasonFromName(check->error_reason);
        return Error(reason == Reason::kUnspecified ? Reason::kEngineFailed : reason, check->error_message)
            .ToStatus();
      };
      auto spec = ToTrainSpec(request->spec());
      if (!spec.ok()) return done(UnderSpec(spec.status()));
      command.spec = *std::move(spec);
      Command(edge_, done, std::move(command), answer, caller.Scope());
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/ValidateDataset", body);
  }

  Reactor* PreviewDataset(Context* context, const v1::PreviewDatasetRequest* request,
                          v1::PreviewDatasetResponse* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "datasets", "name");
      if (!id.ok()) return done(id.status());
      const int32_t rows =
          request->rows() <= 0 ? kDefaultPreview : std::min(request->rows(), kMaxPreview);
      const auto scope = caller.Scope();
      const bool posted = edge_.loop->Read([=, this, id = *id](const Outcome& outcome) {
        auto dataset = FindDataset(outcome.state, id, scope);
        if (!dataset.ok()) return done(dataset.status());
        OnIo(edge_, done, [=, this, dataset = **dataset] { done(Preview(dataset, rows, response)); });
      });
      if (!posted) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/PreviewDataset", body);
  }

  Reactor* GetDataset(Context* context, const v1::GetDatasetRequest* request,
                      v1::Dataset* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "datasets", "name");
      if (!id.ok()) return done(id.status());
      const auto read = [id = *id, response, scope = caller.Scope()](const Outcome& outcome) -> absl::Status {
        ASSIGN_OR_RETURN(const core::Dataset* dataset, FindDataset(outcome.state, id, scope));
        ToProto(*dataset, response);
        return absl::OkStatus();
      };
      ReadState(edge_, done, read);
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/GetDataset", body);
  }

  Reactor* ListDatasets(Context* context, const v1::ListDatasetsRequest* request,
                        v1::ListDatasetsResponse* response) override {
    const auto list = [=](const Outcome& outcome, const std::string& scope) -> absl::Status {
      ASSIGN_OR_RETURN(
          *response->mutable_next_page_token(),
          ListPage(outcome.state.datasets, "datasets", request->page_size(), request->page_token(),
                   [&](const core::Dataset& dataset) { return Sees(scope, dataset.tenant); },
                   [&](const core::Dataset& dataset) { ToProto(dataset, response->add_datasets()); }));
      return absl::OkStatus();
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/ListDatasets",
                 [this, list](const Caller& caller, Done done) {
                   ReadState(edge_, done, [list, scope = caller.Scope()](const Outcome& outcome) {
                     return list(outcome, scope);
                   });
                 });
  }

  Reactor* DeleteDataset(Context* context, const v1::DeleteDatasetRequest* request,
                         v1::DeleteDatasetResponse*) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "datasets", "name");
      if (!id.ok()) return done(id.status());
      Command(edge_, done, core::DeleteDataset{*id}, [](const Outcome&) { return absl::OkStatus(); },
              caller.Scope());
    };
    return Unary(edge_, context, "/nibble.v1.DatasetService/DeleteDataset", body);
  }

 private:
  // Without a name of its own, content that is known keeps the name it has: pushing twice makes one.
  void Store(core::Dataset dataset, Done done, v1::Dataset* response) {
    const auto show = [response](const Outcome& outcome) -> absl::Status {
      ASSIGN_OR_RETURN(const core::Dataset* stored, FindDataset(outcome.state, outcome.id, ""));
      ToProto(*stored, response);
      return absl::OkStatus();
    };
    const bool posted = edge_.loop->Read([=, this](const Outcome& outcome) mutable {
      if (dataset.id.empty()) {
        dataset.id = NewId("data");
        for (const auto& [id, known] : outcome.state.datasets) {
          if (known.sha256 != dataset.sha256 || known.path != dataset.path ||
              known.tenant != dataset.tenant) {
            continue;
          }
          dataset.id = id;
          break;
        }
      }
      Command(edge_, done, core::CreateDataset{std::move(dataset)}, show);
    });
    if (!posted) done(Busy(edge_));
  }

  absl::Status Preview(const core::Dataset& dataset, int32_t count, v1::PreviewDatasetResponse* response) {
    ASSIGN_OR_RETURN(auto rows, FirstRows(ReaderOf(edge_, dataset), count));
    size_t bytes = 0;
    for (const std::string& row : rows) {
      bytes += row.size();
      if (bytes > kMaxPreviewBytes) break;
      response->add_rows(RepairUtf8(row));  // a file below the model root may have changed since
    }
    return absl::OkStatus();
  }

  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewDatasetService(Edge& edge) {
  return std::make_unique<DatasetServiceImpl>(edge);
}

}  // namespace nibble::server
