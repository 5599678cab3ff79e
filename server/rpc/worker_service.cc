#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/status.h"
#include "nibble/worker/v1/worker.grpc.pb.h"
#include "server/job_head.h"
#include "server/meter.h"
#include "server/rooted_files.h"
#include "server/rpc/call.h"
#include "server/rpc/download.h"
#include "server/rpc/services.h"
#include "server/rpc/upload.h"
#include "server/rpc/worker_convert.h"

namespace nibble::server {
namespace {

namespace wv1 = worker::v1;
using Download = DownloadReactor<wv1::FetchBlobResponse>;

constexpr size_t kMaxMetricsPerReport = 10'000;

void FillAnswer(const Outcome& outcome, const std::string& worker_id, wv1::SynchronizeResponse* out) {
  out->set_generation(outcome.state.generation);
  out->set_timeline(outcome.state.timeline);
  const core::Worker* worker = outcome.state.FindWorker(worker_id);
  if (!worker) return;
  const core::DesiredSet desired = core::DesiredFor(outcome.state, *worker, outcome.core.options);
  out->set_revision(desired.revision);
  for (const core::Assignment& assignment : desired.assignments) {
    ToProto(assignment, worker->shares_file_system, out->add_assignments());
  }
}

// Where a worker may read these bytes from: only what one of its own attempts refers to.
struct Source {
  bool found = false;
  std::string path;   // "" = the blob store
};
Source FindSource(const core::State& state, const core::CoreOptions& options, const std::string& worker_id,
                  const std::string& sha256) {
  const core::Worker* worker = state.FindWorker(worker_id);
  if (!worker) return {};
  for (const core::Assignment& a : core::DesiredFor(state, *worker, options).assignments) {
    for (const core::Dataset* dataset : {a.dataset, a.eval_dataset}) {
      if (dataset && dataset->sha256 == sha256) return {true, dataset->path};
    }
    if (a.model) {
      for (const core::FileRef& file : a.model->files) {
        if (file.sha256 != sha256) continue;
        return {true, a.model->root_path.empty() ? "" : a.model->root_path + "/" + file.name};
      }
    }
    if (a.resume) {
      for (const core::FileRef& file : a.resume->files) {
        if (file.sha256 == sha256) return {true, ""};
      }
    }
  }
  return {};
}

class WorkerServiceImpl final : public wv1::WorkerService::CallbackService {
 public:
  explicit WorkerServiceImpl(Edge& edge) : edge_(edge) {}
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  Reactor* Register(Context* context, const wv1::RegisterRequest* request,
                    wv1::RegisterResponse* response) override {
    const auto body = [=, this](const Caller&, Done done) {
      auto command = ReadRegister(*request);
      if (!command.ok()) return done(command.status());
      Command(edge_, done, *std::move(command), [response](const Outcome& outcome) {
        const core::CoreOptions& options = outcome.core.options;
        response->set_timeline(outcome.state.timeline);
        response->set_generation(outcome.state.generation);
        response->set_lease_suspect_ms(options.lease_suspect_us / 1000);
        response->set_lease_lost_ms(options.lease_lost_us / 1000);
        response->set_synchronize_interval_ms(options.synchronize_hold_us / 1000);
        return absl::OkStatus();
      });
    };
    return Unary(edge_, context, "/nibble.worker.v1.WorkerService/Register", body);
  }

  Reactor* Synchronize(Context* context, const wv1::SynchronizeRequest* request,
                       wv1::SynchronizeResponse* response) override {
    const auto body = [=, this](const Caller&, Done done) {
      const auto reply = [=](absl::Status status, const Outcome& outcome) {
        if (StatusReason(status) == Reason::kWorkerNotFound) {
          response->set_register_again(true);
          status = absl::OkStatus();
        }
        if (status.ok()) FillAnswer(outcome, request->worker_id(), response);
        done(status);
      };
      if (!edge_.loop->PostSynchronize(ReadSynchronize(*request), reply)) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.worker.v1.WorkerService/Synchronize", body);
  }

  Reactor* ReportProgress(Context* context, const wv1::ReportProgressRequest* request,
                          wv1::ReportProgressResponse* response) override {
    const auto body = [=, this](const Caller&, Done done) {
      if (static_cast<size_t>(request->metrics_size()) > kMaxMetricsPerReport) {
        return done(Error::Field(Reason::kRequestTooLarge, "metrics",
                                 absl::StrCat("has ", request->metrics_size(), " entries; at most ",
                                              kMaxMetricsPerReport)));
      }
      if (request->metrics_size() == 0) return Report(request, response, done);
      const bool posted = edge_.loop->Read([=, this](const Outcome& outcome) {
        const core::Job* job = outcome.state.FindJob(request->fence().job_id());
        auto metrics = ReadMetrics(*request);
        // An unknown job is refused by the fence below.
        core::ReportProgress command{ReadFence(request->fence()),
                                     HeadAfter(job ? job->progress : core::Progress(), metrics)};
        const bool accepted = edge_.loop->Post(
            std::move(command), [=, this, metrics = std::move(metrics)](absl::Status status, const Outcome&) {
              if (!status.ok()) return done(status);
              Store(request, metrics, response, done);
            });
        if (!accepted) done(Busy(edge_));
      });
      if (!posted) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.worker.v1.WorkerService/ReportProgress", body);
  }

  grpc::ServerWriteReactor<wv1::FetchBlobResponse>* FetchBlob(
      Context* context, const wv1::FetchBlobRequest* request) override {
    const auto find = [this, worker = request->worker_id(),
                       sha256 = request->sha256()](const Outcome& outcome,
                                                   const Caller&) -> absl::StatusOr<Download::Read> {
      const Source source = FindSource(outcome.state, outcome.core.options, worker, sha256);
      if (!source.found) {
        return Error(Reason::kBlobNotFound, "no attempt of this worker refers to that digest").ToStatus();
      }
      if (!source.path.empty()) return Download::Read(ReadThrough(source.path));
      return Download::Read([this, sha256](int64_t offset, int64_t max_bytes) {
        return edge_.blobs->Read(sha256, offset, max_bytes);
      });
    };
    return new Download(edge_, context, "/nibble.worker.v1.WorkerService/FetchBlob", request->offset(), find);
  }

  Reactor* BeginBlob(Context* context, const wv1::BeginBlobRequest* request,
                     wv1::BlobStatus* response) override {
    const auto answer = [=](Done done, const absl::StatusOr<UploadState>& state) {
      if (state.ok()) {
        response->set_upload_id(state->upload_id);
        response->set_committed_bytes(state->committed_bytes);
        response->set_complete(state->complete);
      }
      done(state.status());
    };
    const auto body = [=, this](const Caller&, Done done) {
      const bool posted = edge_.loop->Read([=, this](const Outcome& outcome) {
        if (!FenceHolds(outcome.state, outcome.core.options, ReadFence(request->fence()))) {
          return done(Error(Reason::kStaleAttempt,
                            absl::StrCat("attempt ", request->fence().job_id(), "/", request->fence().epoch(),
                                         " is not the job's current one")));
        }
        BeginBlobUpload(edge_, request->sha256(), request->size_bytes(), "",
                        [=](const absl::StatusOr<UploadState>& state) { answer(done, state); });
      });
      if (!posted) done(Busy(edge_));
    };
    return Unary(edge_, context, "/nibble.worker.v1.WorkerService/BeginBlob", body);
  }

  grpc::ServerReadReactor<wv1::BlobChunk>* PutBlob(Context* context, wv1::BlobStatus* response) override {
    return new UploadReactor<wv1::BlobChunk, wv1::BlobStatus>(
        edge_, context, "/nibble.worker.v1.WorkerService/PutBlob", /*confined=*/false, response);
  }

 private:
  // A model's file may be a link: it is resolved and checked again at every read.
  Download::Read ReadThrough(const std::string& path) const {
    return [root = edge_.model_root, path](int64_t offset,
                                           int64_t max_bytes) -> absl::StatusOr<std::string> {
      ASSIGN_OR_RETURN(const RootedFile file, OpenBelowRoot(root, path, "path"));
      return RootedReader(file.path)(offset, max_bytes);
    };
  }

  // Metrics are stored and shown before the report that may end the job.
  void Store(const wv1::ReportProgressRequest* request, const std::vector<store::StepMetric>& metrics,
             wv1::ReportProgressResponse* response, Done done) {
    OnIo(edge_, done, [=, this] {
      const absl::Status status = edge_.metrics->Append(request->fence().job_id(), metrics);
      if (!status.ok()) return done(status);
      edge_.hub->PublishMetrics(request->fence().job_id(), metrics);
      if (edge_.meter) edge_.meter->OnProgress(request->fence().job_id());
      Report(request, response, done);
    });
  }

  void Report(const wv1::ReportProgressRequest* request, wv1::ReportProgressResponse* response, Done done) {
    const auto answer = [response](const Outcome& outcome) {
      response->set_generation(outcome.state.generation);
      return absl::OkStatus();
    };
    auto report = ReadReport(*request);
    if (report) {
      Command(edge_, done, *std::move(report), answer);
    } else {
      ReadState(edge_, done, answer);
    }
  }

  Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewWorkerService(Edge& edge) {
  return std::make_unique<WorkerServiceImpl>(edge);
}

}  // namespace nibble::server
