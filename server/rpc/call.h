// How a unary call is answered: checked on the gRPC thread, worked on elsewhere, finished once.
//
// Nothing here blocks a gRPC thread. A Done is the promise to finish; copies share it, and it must be
// called exactly once. Request and response live until then.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/support/server_callback.h"
#include "server/core/excerpt.h"
#include "server/edge.h"

namespace nibble::server {

using Outcome = ControlLoop::Outcome;

// Trailing metadata of every unary answer while it may be old, in words for people.
inline constexpr char kWarningHeader[] = "nibble-warning";

// Says in the log what callers are not told (status.h); not for every call while a disk fails.
void LogHidden(const absl::Status& status);

class Done {
 public:
  explicit Done(grpc::ServerUnaryReactor* reactor) : reactor_(reactor) {}
  void operator()(const absl::Status& status) const;

 private:
  grpc::ServerUnaryReactor* reactor_;
};

// Who calls, or why they may not.
absl::StatusOr<Caller> Authorize(const Edge& edge, grpc::CallbackServerContext* context,
                                 const char* method);
// Names for people are bounded, because they travel with every answer.
absl::Status CheckDisplayName(const std::string& display_name);
// What to tell a caller the loop or the pool has no room for.
absl::Status Busy(const Edge& edge);

// `body` runs on the gRPC thread if the caller may call `method`; it must arrange that Done is called.
grpc::ServerUnaryReactor* Unary(Edge& edge, grpc::CallbackServerContext* context, const char* method,
                                const std::function<void(const Caller&, Done)>& body);

// Finishes with what `read` returns; it runs on the loop's thread and fills the response.
void ReadState(Edge& edge, Done done, std::function<absl::Status(const Outcome&)> read);
// Posts the command; when it was committed, finishes with what `answer` returns. `scope`: Caller::Scope.
void Command(Edge& edge, Done done, core::CommandBody body,
             std::function<absl::Status(const Outcome&)> answer, std::string scope = "");
// Whether something of the project exists for a caller of that scope.
inline bool Sees(const std::string& scope, const std::string& tenant) {
  return scope.empty() || scope == tenant;
}
// Copies the rest of the excerpt, a part a turn of the loop, then calls `then` on the loop's thread;
// `outcome` is of this turn. `then` keeps the excerpt alive.
void CopyExcerpt(Edge& edge, const Done& done, const Outcome& outcome, core::Excerpt& excerpt,
                 std::function<void()> then);
// Runs `work` on the pool for short or long work, or whole files; it must arrange that Done is called.
void OnIo(Edge& edge, Done done, std::function<void()> work);
void OnWork(Edge& edge, Done done, std::function<void()> work);
void OnFiles(Edge& edge, Done done, std::function<void()> work);

}  // namespace nibble::server
