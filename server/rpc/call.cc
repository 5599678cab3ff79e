#include "server/rpc/call.h"

#include <atomic>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "grpcpp/security/auth_context.h"
#include "grpcpp/server_context.h"
#include "server/rpc/status.h"
#include "server/store_health.h"

namespace nibble::server {
namespace {

constexpr int64_t kQuietUs = 10'000'000;

}  // namespace

void LogHidden(const absl::Status& status) {
  if (status.ok() || absl::IsCancelled(status)) return;  // nobody waits for the answer
  const Reason reason = StatusReason(status);
  if (reason == Reason::kStoreUnavailable) {
    static std::atomic<int64_t> quiet_until_us{0};
    const int64_t now_us = RealClock::Get().NowMonotonicUs();
    int64_t until_us = quiet_until_us;
    if (now_us < until_us || !quiet_until_us.compare_exchange_strong(until_us, now_us + kQuietUs)) return;
  } else if (reason != Reason::kUnspecified) {
    return;
  }
  LogError("rpc.failed", {{"status", std::string(status.ToString())}});
}

void Done::operator()(const absl::Status& status) const {
  LogHidden(status);
  reactor_->Finish(ToGrpcStatus(status));
}

absl::StatusOr<Caller> Authorize(const Edge& edge, grpc::CallbackServerContext* context,
                                 const char* method) {
  std::string_view authorization;
  const auto header = context->client_metadata().find("authorization");
  if (header != context->client_metadata().end()) {
    authorization = std::string_view(header->second.data(), header->second.size());
  }
  std::string certificate_name;
  const auto auth = context->auth_context();
  if (edge.authorizer->required() && auth && auth->IsPeerAuthenticated()) {
    for (const grpc::string_ref& name : auth->FindPropertyValues("x509_common_name")) {
      certificate_name.assign(name.data(), name.size());
    }
  }
  return edge.authorizer->Check(method, authorization, certificate_name);
}

absl::Status CheckDisplayName(const std::string& display_name) {
  if (display_name.size() <= core::kMaxDisplayNameBytes) return absl::OkStatus();
  return Error::Field(Reason::kSpecInvalid, "display_name",
                      absl::StrCat("has ", display_name.size(), " bytes; at most ",
                                   core::kMaxDisplayNameBytes));
}

absl::Status Busy(const Edge& edge) {
  if (edge.draining) {
    return Error(Reason::kShuttingDown, "the server is shutting down; try again when it is back");
  }
  return Error(Reason::kQueueFull, "the server has too much to do; try again in a moment");
}

grpc::ServerUnaryReactor* Unary(Edge& edge, grpc::CallbackServerContext* context, const char* method,
                                const std::function<void(const Caller&, Done)>& body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const Done done(reactor);
  if (edge.health != nullptr) {
    const std::string trouble = edge.health->Trouble(edge.clock->NowMonotonicUs());
    if (!trouble.empty()) context->AddTrailingMetadata(kWarningHeader, trouble);
  }
  const auto caller = Authorize(edge, context, method);
  if (!caller.ok()) {
    done(caller.status());
  } else {
    body(*caller, done);
  }
  return reactor;
}

void ReadState(Edge& edge, Done done, std::function<absl::Status(const Outcome&)> read) {
  if (!edge.loop->Read([done, read = std::move(read)](const Outcome& outcome) { done(read(outcome)); })) {
    done(Busy(edge));
  }
}

void Command(Edge& edge, Done done, core::CommandBody body,
             std::function<absl::Status(const Outcome&)> answer, std::string scope) {
  const bool posted = edge.loop->Post(
      std::move(body), [done, answer = std::move(answer)](absl::Status status, const Outcome& outcome) {
        done(status.ok() ? answer(outcome) : status);
      },
      std::move(scope));
  if (!posted) done(Busy(edge));
}

void CopyExcerpt(Edge& edge, const Done& done, const Outcome& outcome, core::Excerpt& excerpt,
                 std::function<void()> then) {
  if (excerpt.Copy(outcome.state)) return then();
  const bool posted =
      edge.loop->Read([&edge, done, &excerpt, then = std::move(then)](const Outcome& next) {
        CopyExcerpt(edge, done, next, excerpt, then);
      });
  if (!posted) done(Busy(edge));
}

void OnIo(Edge& edge, Done done, std::function<void()> work) {
  if (!edge.io->Post(std::move(work))) done(Busy(edge));
}

void OnWork(Edge& edge, Done done, std::function<void()> work) {
  if (!edge.work->Post(std::move(work))) done(Busy(edge));
}

void OnFiles(Edge& edge, Done done, std::function<void()> work) {
  if (!edge.files->Post(std::move(work))) done(Busy(edge));
}

}  // namespace nibble::server
