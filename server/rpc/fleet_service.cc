#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/id.h"
#include "base/status.h"
#include "nibble/v1/fleet.grpc.pb.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"

namespace nibble::server {
namespace {

absl::Status Show(const Outcome& outcome, const std::string& id, const std::string& scope,
                  v1::Worker* out) {
  const core::Worker* worker = outcome.state.FindWorker(id);
  if (!worker) {
    return Error(Reason::kWorkerNotFound, absl::StrCat("workers/", id, " has never registered"))
        .With("name", absl::StrCat("workers/", id));
  }
  ToProto(outcome.state, *worker, outcome.core.options, outcome.now.monotonic_us, scope, out);
  return absl::OkStatus();
}

class FleetServiceImpl final : public v1::FleetService::CallbackService {
 public:
  explicit FleetServiceImpl(Edge& edge) : edge_(edge) {}
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* ListWorkers(Context* context, const v1::ListWorkersRequest* request,
                       v1::ListWorkersResponse* response) override {
    const auto list = [=](const Outcome& outcome, const std::string& scope) -> absl::Status {
      ASSIGN_OR_RETURN(
          *response->mutable_next_page_token(),
          ListPage(outcome.state.workers, "workers", request->page_size(), request->page_token(),
                   [](const core::Worker&) { return true; }, [&](const core::Worker& worker) {
                     ToProto(outcome.state, worker, outcome.core.options, outcome.now.monotonic_us,
                             scope, response->add_workers());
                   }));
      return absl::OkStatus();
    };
    return Unary(edge_, context, "/nibble.v1.FleetService/ListWorkers",
                 [this, list](const Caller& caller, Done done) {
                   ReadState(edge_, done, [list, scope = caller.Scope()](const Outcome& outcome) {
                     return list(outcome, scope);
                   });
                 });
  }

  Reactor* GetWorker(Context* context, const v1::GetWorkerRequest* request,
                     v1::Worker* response) override {
    const auto body = [=, this](const Caller& caller, Done done) {
      auto id = ParseName(request->name(), "workers", "name");
      if (!id.ok()) return done(id.status());
      ReadState(edge_, done, [id = *id, scope = caller.Scope(), response](const Outcome& o) {
        return Show(o, id, scope, response);
      });
    };
    return Unary(edge_, context, "/nibble.v1.FleetService/GetWorker", body);
  }

  Reactor* DrainWorker(Context* context, const v1::DrainWorkerRequest* request,
                       v1::Worker* response) override {
    return RunVerb<core::DrainWorker>(context, "/nibble.v1.FleetService/DrainWorker",
                                      request->name(), response);
  }
  Reactor* UndrainWorker(Context* context, const v1::UndrainWorkerRequest* request,
                         v1::Worker* response) override {
    return RunVerb<core::UndrainWorker>(context, "/nibble.v1.FleetService/UndrainWorker", request->name(),
                                        response);
  }

  Reactor* DeleteWorker(Context* context, const v1::DeleteWorkerRequest* request,
                        v1::DeleteWorkerResponse*) override {
    return Unary(edge_, context, "/nibble.v1.FleetService/DeleteWorker", [=, this](const Caller&, Done done) {
      auto id = ParseName(request->name(), "workers", "name");
      if (!id.ok()) return done(id.status());
      Command(edge_, done, core::DeleteWorker{*id}, [](const Outcome&) { return absl::OkStatus(); });
    });
  }

 private:
  template <typename Verb>
  Reactor* RunVerb(Context* context, const char* method, const std::string& name, v1::Worker* response) {
    return Unary(edge_, context, method, [=, this, &name](const Caller& caller, Done done) {
      auto id = ParseName(name, "workers", "name");
      if (!id.ok()) return done(id.status());
      Command(edge_, done, Verb{*id},
              [id = *id, scope = caller.Scope(), response](const Outcome& o) {
                return Show(o, id, scope, response);
              });
    });
  }

  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewFleetService(Edge& edge) {
  return std::make_unique<FleetServiceImpl>(edge);
}

}  // namespace nibble::server
