#include "server/server.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/id.h"
#include "base/log.h"
#include "base/status.h"
#include "server/auth.h"
#include "server/control_loop.h"
#include "server/data_dir.h"
#include "server/edge.h"
#include "server/http.h"
#include "server/job_head.h"
#include "server/keeper.h"
#include "server/memory_history.h"
#include "server/metered.h"
#include "server/plan_desk.h"
#include "server/rpc/grpc_server.h"
#include "server/server_certificate.h"
#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"
#include "server/store_health.h"
#include "server/trouble_log.h"

namespace nibble::server {
namespace {

constexpr int kIoThreads = 4;
constexpr size_t kIoQueue = 4096;
constexpr int kWorkThreads = 2;
constexpr int kFileThreads = 2;
constexpr size_t kWorkQueue = 64;
constexpr int64_t kTokenRefreshUs = 1'000'000;

constexpr std::string_view kSocket = "unix:";

std::string HostOf(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  return colon == std::string::npos ? listen : listen.substr(0, colon);
}

// Where clients find what listens there.
std::string AddressOf(const std::string& listen, int port) {
  if (!listen.starts_with(kSocket)) return absl::StrCat(HostOf(listen), ":", port);
  return absl::StrCat("unix:", std::filesystem::absolute(listen.substr(kSocket.size())).string());
}

// gRPC takes a port that is too large for another one.
absl::Status CheckAddress(const char* flag, const std::string& listen) {
  const size_t colon = listen.rfind(':');
  int32_t port = -1;
  if (listen.starts_with(kSocket) && listen.size() > kSocket.size()) return absl::OkStatus();
  if (colon != std::string::npos && colon > 0 && absl::SimpleAtoi(listen.substr(colon + 1), &port) &&
      port >= 0 && port <= 65535)
    return absl::OkStatus();
  return Error::Field(
      Reason::kSpecInvalid, flag,
      absl::StrCat("is ", listen, ", must be HOST:PORT with a port from 0 to 65535; 0 takes a free one"));
}

absl::Status CheckExposure(const ServerOptions& options, const TokenFile& tokens) {
  const bool tls = !options.tls_cert.empty();
  if (tls != !options.tls_key.empty()) {
    return Error::Field(Reason::kSpecInvalid, "--tls-cert", "and --tls-key must be given together");
  }
  if (!tls && !options.client_ca.empty()) {
    return Error::Field(Reason::kSpecInvalid, "--client-ca", "needs --tls-cert and --tls-key");
  }
  if (tls && tokens.List().empty() && options.client_ca.empty()) {
    return Error(Reason::kTokenInvalid,
                 "with TLS every call needs a token, and there is none: make one with `nibble-server token "
                 "create`, or name a --client-ca");
  }
  if (!tls && !IsLoopback(options.listen)) {
    return Error::Field(
        Reason::kSpecInvalid, "--listen",
        absl::StrCat("is ", options.listen,
                     ", which others can reach: that needs --tls-cert and "
                     "--tls-key (see `nibble-server init-tls`) and a token; without them only a "
                     "loopback address such as 127.0.0.1:7070 is served"));
  }
  return absl::OkStatus();
}

void LogRecord(const core::EventRecord& record) {
  // One for every file of every checkpoint: detail.
  const LogLevel level = record.type == "blob.recorded" ? LogLevel::kDebug : LogLevel::kInfo;
  if (record.job_id.empty()) return Log(level, record.type, {{"message", record.message}});
  Log(level, record.type,
      {{"job", record.job_id}, {"sequence", record.sequence}, {"message", record.message}});
}

class ServerImpl : public Server {
 public:
  explicit ServerImpl(ServerOptions options)
      : options_(std::move(options)),
        tokens_(JoinPath(options_.data_dir, "tokens.json")),
        meter_(options_.meter, &RealClock::Get()) {}
  ~ServerImpl() override { Stop(0); }

  absl::Status Start();
  int port() const override { return grpc_ ? grpc_->port() : 0; }
  int http_port() const override { return http_ ? http_->port() : 0; }
  void Stop(int64_t grace_us) override;

 private:
  absl::Status OpenStores();
  absl::Status StartLoop();
  void CheckBlobs();
  absl::Status OpenHistory();
  absl::Status ReadCertificate();
  void RefreshCertificate();
  absl::Status StartServing();

  ServerOptions options_;
  std::unique_ptr<DataDirLock> lock_;
  TokenFile tokens_;
  Meter meter_;
  StoreHealth health_;
  TroubleLog tokens_trouble_;
  std::unique_ptr<ServerCertificate> certificate_;  // nullptr = no TLS
  TroubleLog certificate_trouble_;
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<store::Store> store_;
  std::unique_ptr<store::MetricStore> metrics_;
  std::unique_ptr<BlobStore> blobs_;
  WatchHub hub_;
  std::unique_ptr<ControlLoop> loop_;
  std::unique_ptr<store::History> history_;
  std::unique_ptr<IoPool> io_;
  std::unique_ptr<IoPool> work_;
  std::unique_ptr<IoPool> files_;
  std::unique_ptr<PlanDesk> plans_;
  std::unique_ptr<Ticker> ticker_;
  Edge edge_;
  std::unique_ptr<Keeper> keeper_;
  std::unique_ptr<GrpcServer> grpc_;
  std::unique_ptr<HttpServer> http_;
  bool stopped_ = false;
};

absl::Status ServerImpl::OpenStores() {
  if (options_.in_memory) {
    store_ = std::make_unique<store::MemoryStore>();
    metrics_ = std::make_unique<store::MemoryMetricStore>();
  } else {
    ASSIGN_OR_RETURN(store_, store::OpenSqliteStore(options_.data_dir));
    ASSIGN_OR_RETURN(metrics_, store::OpenSqliteMetricStore(options_.data_dir));
  }
  store_ = NewMeteredStore(std::move(store_), &meter_, &health_);
  metrics_ = NewMeteredMetricStore(std::move(metrics_), &meter_, &health_);
  ASSIGN_OR_RETURN(blobs_, OpenDirectoryBlobStore(JoinPath(options_.data_dir, "blobs"), options_.blobs,
                                                  RealClock::Get()));
  blobs_ = NewMeteredBlobStore(std::move(blobs_), &meter_);
  return absl::OkStatus();
}

absl::Status ServerImpl::StartLoop() {
  ControlLoop::Options options;
  options.core = options_.core;
  ASSIGN_OR_RETURN(options.core.token_secret, LoadOrMakeSecret(options_.data_dir));
  options.tick_us = options_.tick_us;
  options.retain_events_us = options_.retain_events_us;
  options.timeline = NewUuid();
  options.new_timeline = WasRestored(options_.data_dir);
  options.on_load = [this](core::State& state) { CatchUp(*metrics_, state); };
  options.on_commit = [this](const std::vector<core::EventRecord>& records, const core::State& state) {
    meter_.OnCommit(records, state);
    for (const core::EventRecord& record : records) LogRecord(record);
  };
  options.on_fatal = [this](const absl::Status& status) {
    LogError("store.lost", {{"status", std::string(status.ToString())}});
    if (options_.on_fatal) options_.on_fatal();
  };
  options.decide = [this](const core::State& state, const core::Command& command, core::Core& core) {
    if (!std::holds_alternative<core::Place>(command.body)) return core::Decide(state, command, core);
    const int64_t begin_us = RealClock::Get().NowMonotonicUs();
    auto decision = core::Decide(state, command, core);
    meter_.OnPlacementPass(RealClock::Get().NowMonotonicUs() - begin_us);
    return decision;
  };
  edge_.core = options.core;
  loop_ = std::make_unique<ControlLoop>(std::move(options), core::RealSpecFunctions(), store_.get(), &hub_,
                                        &RealClock::Get());
  RETURN_IF_ERROR(loop_->Start());
  ClearRestored(options_.data_dir);
  return absl::OkStatus();
}

// Every blob the state knows must be there in full. What is not is for an operator to restore: the rest
// works on, and whoever needs it hears BLOB_NOT_FOUND.
void ServerImpl::CheckBlobs() {
  for (const auto& [sha256, blob] : loop_->state().blobs) {
    const auto size = blobs_->SizeBytes(sha256);
    if (size.ok() && *size == blob.size_bytes) continue;
    LogError("blob.damaged",
             {{"sha256", sha256}, {"size_bytes", blob.size_bytes}, {"found", size.value_or(-1)}});
  }
}

absl::Status ServerImpl::OpenHistory() {
  if (options_.in_memory) {
    history_ = NewMemoryHistory(loop_.get(), store_.get(), metrics_.get());
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(history_, store::OpenSqliteHistory(options_.data_dir));
  return absl::OkStatus();
}

// Of --tls-cert, if there is one.
absl::Status ServerImpl::ReadCertificate() {
  if (options_.tls_cert.empty()) return absl::OkStatus();
  certificate_ = std::make_unique<ServerCertificate>(
      ServerCertificate::Paths{options_.tls_cert, options_.tls_key, options_.client_ca}, &RealClock::Get());
  return certificate_->Refresh().status();
}

void ServerImpl::RefreshCertificate() {
  const absl::StatusOr<bool> taken = certificate_->Refresh();
  const auto said =
      certificate_trouble_.Note("certificate", !taken.ok(), RealClock::Get().NowMonotonicUs()).say;
  if (said == TroubleLog::Say::kFails)
    LogError("certificate.refused", {{"status", std::string(taken.status().ToString())}});
  if (taken.ok() && *taken)
    LogInfo("certificate.taken", {{"end_unix_us", certificate_->Current()->end_unix_us}});
  else if (said == TroubleLog::Say::kWorksAgain)
    LogInfo("certificate.readable", {});
}

absl::Status ServerImpl::StartServing() {
  GrpcOptions grpc;
  grpc.listen = options_.listen;
  grpc.reflection = options_.reflection || IsLoopback(options_.listen);
  grpc.certificate = certificate_.get();
  ASSIGN_OR_RETURN(grpc_, StartGrpc(grpc, edge_, &meter_));
  if (!options_.http_listen.empty()) {
    ASSIGN_OR_RETURN(http_, StartHttp(options_.http_listen,
                                      {[this] { return meter_.Scrape(); },
                                       [this] { return loop_->serving() && !edge_.draining; }}));
  }
  loop_->RunThread();
  grpc_->SetServing(true);
  const std::string address = AddressOf(options_.listen, port());
  RETURN_IF_ERROR(WriteServerInfo(options_.data_dir, address,
                                  http_ ? AddressOf(options_.http_listen, http_port()) : ""));
  LogInfo("server.serving", {{"listen", address},
                             {"http_port", http_port()},
                             {"tls", certificate_ != nullptr}});
  return absl::OkStatus();
}

absl::Status ServerImpl::Start() {
  ASSIGN_OR_RETURN(lock_, DataDirLock::Acquire(options_.data_dir));
  RemoveServerInfo(options_.data_dir);
  if (!options_.in_memory && IsHalfRestored(options_.data_dir)) {
    return Error::Field(Reason::kSpecInvalid, "--data-dir",
                        absl::StrCat(options_.data_dir, " holds a restore that was cut off; run "
                                                        "`nibble-server restore` again, it goes on"));
  }
  if (!options_.in_memory) RETURN_IF_ERROR(CheckDatabaseIsThere(options_.data_dir));
  RETURN_IF_ERROR(tokens_.Refresh());
  RETURN_IF_ERROR(CheckAddress("--listen", options_.listen));
  if (!options_.http_listen.empty()) RETURN_IF_ERROR(CheckAddress("--http-listen", options_.http_listen));
  RETURN_IF_ERROR(CheckExposure(options_, tokens_));
  RETURN_IF_ERROR(ReadCertificate());
  if (!options_.model_root.empty()) {
    const absl::StatusOr<std::string> root = RealPath(options_.model_root);
    if (!root.ok()) {
      return Error(Reason::kSpecInvalid,
                   absl::StrCat("--model-root: ", std::string(root.status().message())))
          .ToStatus();
    }
    options_.model_root = *root;
  }
  RETURN_IF_ERROR(OpenStores());
  RETURN_IF_ERROR(StartLoop());
  CheckBlobs();
  RETURN_IF_ERROR(OpenHistory());
  authorizer_ = std::make_unique<Authorizer>(!options_.tls_cert.empty(), &tokens_, &RealClock::Get());
  io_ = std::make_unique<IoPool>(kIoThreads, kIoQueue);
  work_ = std::make_unique<IoPool>(kWorkThreads, kWorkQueue);
  files_ = std::make_unique<IoPool>(kFileThreads, kWorkQueue);
  plans_ = std::make_unique<PlanDesk>(edge_.core, core::RealSpecFunctions());
  ticker_ = std::make_unique<Ticker>();
  edge_.loop = loop_.get();
  edge_.hub = &hub_;
  edge_.history = history_.get();
  edge_.metrics = metrics_.get();
  edge_.blobs = blobs_.get();
  edge_.io = io_.get();
  edge_.work = work_.get();
  edge_.files = files_.get();
  edge_.ticker = ticker_.get();
  edge_.authorizer = authorizer_.get();
  edge_.clock = &RealClock::Get();
  edge_.plans = plans_.get();
  edge_.meter = &meter_;
  edge_.health = &health_;
  edge_.model_root = options_.model_root;
  edge_.heartbeat_us = options_.heartbeat_us;
  meter_.SetSources({loop_.get(), &hub_, blobs_.get(), authorizer_.get(), options_.data_dir,
                     options_.model_root, options_.blobs.min_free_bytes, certificate_.get()});
  ticker_->Add(kTokenRefreshUs, [this] {
    const absl::Status status = tokens_.Refresh();
    const auto said = tokens_trouble_.Note("tokens", !status.ok(), RealClock::Get().NowMonotonicUs()).say;
    if (said == TroubleLog::Say::kFails)
      LogError("tokens.unreadable", {{"status", std::string(status.ToString())}});
    if (said == TroubleLog::Say::kWorksAgain) LogInfo("tokens.readable", {});
  });
  if (certificate_) ticker_->Add(options_.certificate_refresh_us, [this] { RefreshCertificate(); });
  keeper_ = std::make_unique<Keeper>(&edge_, KeeperOptions{options_.collect_us, options_.retain_jobs_us,
                                                           options_.retain_workers_us});
  return StartServing();
}

void ServerImpl::Stop(int64_t grace_us) {
  if (stopped_) return;
  stopped_ = true;
  LogInfo("server.stopping", {});
  edge_.draining = true;
  if (grpc_) grpc_->SetServing(false);
  hub_.Close();
  keeper_.reset();
  if (loop_) loop_->Stop();
  if (grpc_) grpc_->Shutdown(grace_us);
  http_.reset();
  if (ticker_) ticker_->Stop();
  if (files_) files_->Stop();
  if (work_) work_->Stop();
  if (io_) io_->Stop();
  grpc_.reset();
  if (lock_) RemoveServerInfo(options_.data_dir);
  LogInfo("server.stopped", {});
}

}  // namespace

void SetLease(int64_t lease_us, core::CoreOptions* core) {
  core->lease_lost_us = lease_us;
  core->lease_suspect_us = lease_us / 3;
  core->synchronize_hold_us = std::min<int64_t>(10'000'000, lease_us / 6);
  // And not less than some ticks of a short one: a busy machine is late, too.
  core->sleep_us = std::max(lease_us / 8, std::min<int64_t>(3'000'000, lease_us * 3 / 10));
}

absl::StatusOr<std::unique_ptr<Server>> StartServer(ServerOptions options) {
  auto server = std::make_unique<ServerImpl>(std::move(options));
  RETURN_IF_ERROR(server->Start());
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace nibble::server
