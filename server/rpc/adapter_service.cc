#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "nibble/v1/adapter.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/download.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

absl::StatusOr<const core::Adapter*> FindAdapter(const core::State& state, const std::string& id,
                                                 const std::string& scope) {
  const auto it = state.adapters.find(id);
  if (it != state.adapters.end() && Sees(scope, it->second.tenant)) return &it->second;
  const core::Job* job = state.FindJob(id);
  if (job && Sees(scope, job->tenant) && !core::IsTerminal(job->state)) {
    return Error(Reason::kArtifactNotReady,
                 absl::StrCat("jobs/", id, " is ", std::string(core::JobStateName(job->state)),
                              "; its adapter is there when it has succeeded"))
        .With("job", absl::StrCat("jobs/", id))
        .ToStatus();
  }
  std::string why = " does not exist";
  if (job && Sees(scope, job->tenant) && job->kind == core::JobKind::kTrain) {
    why = absl::StrCat(" does not exist: jobs/", id, " is ", std::string(core::JobStateName(job->state)));
    if (job->state == core::JobState::kSucceeded) why = " was removed";
    if (job->state == core::JobState::kFailed)
      absl::StrAppend(&why, " (", job->error_reason, ": ", job->error_message, ")");
  }
  return Error(Reason::kAdapterNotFound, absl::StrCat("adapters/", id, why))
      .With("name", absl::StrCat("adapters/", id))
      .ToStatus();
}

// The digest of one file of an adapter; the name is compared, never used as a path.
absl::StatusOr<std::string> FindFile(const core::State& state, const std::string& name,
                                     const std::string& file, const std::string& scope) {
  ASSIGN_OR_RETURN(const std::string id, ParseName(name, "adapters", "name"));
  ASSIGN_OR_RETURN(const core::Adapter* adapter, FindAdapter(state, id, scope));
  std::string known;
  for (const core::FileRef& ref : adapter->files) {
    if (ref.name == file) return ref.sha256;
    absl::StrAppend(&known, known.empty() ? "" : ", ", ref.name);
  }
  return Error::Field(Reason::kAdapterNotFound, "file", absl::StrCat("is none of the adapter's: ", known))
      .ToStatus();
}

using Download = DownloadReactor<v1::DownloadAdapterResponse>;

class AdapterServiceImpl final : public v1::AdapterService::CallbackService {
 public:
  explicit AdapterServiceImpl(Edge& edge) : edge_(edge) {}
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* GetAdapter(Context* context, const v1::GetAdapterRequest* request,
                      v1::Adapter* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "adapters", "name");
      if (!id.ok()) return done(id.status());
      const auto read = [id = *id, response, scope = caller.Scope()](const Outcome& outcome) -> absl::Status {
        ASSIGN_OR_RETURN(const core::Adapter* adapter, FindAdapter(outcome.state, id, scope));
        ToProto(*adapter, response);
        return absl::OkStatus();
      };
      ReadState(edge_, done, read);
    };
    return Unary(edge_, context, "/nibble.v1.AdapterService/GetAdapter", body);
  }

  Reactor* ListAdapters(Context* context, const v1::ListAdaptersRequest* request,
                        v1::ListAdaptersResponse* response) override {
    const auto list = [=](const Outcome& outcome, const std::string& scope) -> absl::Status {
      ASSIGN_OR_RETURN(
          *response->mutable_next_page_token(),
          ListPage(outcome.state.adapters, "adapters", request->page_size(), request->page_token(),
                   [&](const core::Adapter& adapter) { return Sees(scope, adapter.tenant); },
                   [&](const core::Adapter& adapter) { ToProto(adapter, response->add_adapters()); }));
      return absl::OkStatus();
    };
    return Unary(edge_, context, "/nibble.v1.AdapterService/ListAdapters",
                 [this, list](const Caller& caller, Done done) {
                   ReadState(edge_, done, [list, scope = caller.Scope()](const Outcome& outcome) {
                     return list(outcome, scope);
                   });
                 });
  }

  Reactor* DeleteAdapter(Context* context, const v1::DeleteAdapterRequest* request,
                         v1::DeleteAdapterResponse*) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "adapters", "name");
      if (!id.ok()) return done(id.status());
      Command(edge_, done, core::DeleteAdapter{*id}, [](const Outcome&) { return absl::OkStatus(); },
              caller.Scope());
    };
    return Unary(edge_, context, "/nibble.v1.AdapterService/DeleteAdapter", body);
  }

  grpc::ServerWriteReactor<v1::DownloadAdapterResponse>* DownloadAdapter(
      Context* context, const v1::DownloadAdapterRequest* request) override {
    const auto find = [this, name = request->name(),
                       file = request->file()](const Outcome& outcome,
                                               const Caller& caller) -> absl::StatusOr<Download::Read> {
      ASSIGN_OR_RETURN(const std::string sha256, FindFile(outcome.state, name, file, caller.Scope()));
      return Download::Read([this, sha256](int64_t offset, int64_t max_bytes) {
        return edge_.blobs->Read(sha256, offset, max_bytes);
      });
    };
    return new Download(edge_, context, "/nibble.v1.AdapterService/DownloadAdapter", request->offset(), find);
  }

 private:
  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewAdapterService(Edge& edge) {
  return std::make_unique<AdapterServiceImpl>(edge);
}

}  // namespace nibble::server
