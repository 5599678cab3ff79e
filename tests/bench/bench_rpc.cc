// nibble-bench-rpc [RATE [SECONDS [WORKERS [WAITING]]]]: from CreateJob to the worker that has the
// job.
//
// A whole server over SQLite, reached by gRPC on loopback. RATE jobs a second arrive (Poisson);
// workers take them, say that they have begun and ended, and are free again; WAITING jobs too large
// for what is free wait all the time: each worker holds one large job for ever, beside which small ones
// of its base fit, but no large one of another. Latency runs from before the CreateJob call until the worker
// has read the answer with the assignment in it.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "nibble/v1/blob.grpc.pb.h"
#include "nibble/v1/dataset.grpc.pb.h"
#include "nibble/v1/job.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "nibble/worker/v1/worker.grpc.pb.h"
#include "server/server.h"
#include "server/testing/tiny_model.h"

namespace nibble::bench {
namespace {

namespace wv1 = worker::v1;
using SteadyClock = std::chrono::steady_clock;

constexpr int64_t kCapacityBytes = int64_t{1} << 28;

void Must(const grpc::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "nibble-bench-rpc: %s: %s\n", what, status.error_message().c_str());
  std::exit(1);
}

// When each job was asked for, and how long it took to reach a worker.
class Stopwatch {
 public:
  void Asked(const std::string& job) {
    const std::lock_guard lock(mutex_);
    asked_[job] = SteadyClock::now();
  }
  void Placed(const std::string& job) {
    const auto now = SteadyClock::now();
    const std::lock_guard lock(mutex_);
    const auto it = asked_.find(job);
    if (it == asked_.end()) return;
    taken_ms_.push_back(std::chrono::duration<double, std::milli>(now - it->second).count());
    asked_.erase(it);
  }
  size_t outstanding() {
    const std::lock_guard lock(mutex_);
    return asked_.size();
  }
  std::vector<double> Sorted() {
    const std::lock_guard lock(mutex_);
    std::sort(taken_ms_.begin(), taken_ms_.end());
    return taken_ms_;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, SteadyClock::time_point> asked_;
  std::vector<double> taken_ms_;
};

class Bench {
 public:
  explicit Bench(const std::string& dir) : dir_(dir) {
    server::ServerOptions options;
    options.data_dir = dir + "/data";
    options.model_root = dir + "/models";
    options.listen = "127.0.0.1:0";
    options.http_listen = "";
    options.blobs.min_free_bytes = 0;
    CHECK_OK(MakeDirs(dir + "/models/tiny"));
    for (const auto& [name, data] :
         {std::pair<std::string, std::string>{"config.json", server::TinyConfig(4096)},
          {"tokenizer.json", server::kTinyTokenizer},
          {"model.safetensors", server::TinyWeights()},
          {"rows.jsonl", "{\"text\":\"a b\"}\n{\"text\":\"b a\"}\n"}}) {
      CHECK_OK(WriteFileAtomic(dir + "/models/tiny/" + name, data));
    }
    server_ = server::StartServer(options).value();
    channel_ = Connect();
    Prepare();
  }

  std::shared_ptr<grpc::Channel> Connect() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
    return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                     grpc::InsecureChannelCredentials(), arguments);
  }

  // Jobs of one base share their step region, so a large one of another has to be of another kind.
  enum class Size { kSmall, kHeld, kWaiting };
  v1::CreateJobRequest Request(const std::string& id, Size size) const {
    v1::CreateJobRequest request;
    request.set_job_id(id);
    request.mutable_spec()->set_base_model(model_);
    request.mutable_spec()->set_dataset(dataset_);
    const bool large = size != Size::kSmall;
    request.mutable_spec()->mutable_data()->set_sequence_len(large ? 4096 : 64);
    request.mutable_spec()->mutable_training()->set_micro_batch_size(large ? 16 : 1);
    if (size == Size::kWaiting) request.mutable_spec()->mutable_quantization()->set_type("int8");
    return request;
  }

  void Submit(v1::JobService::Stub& jobs, const std::string& id, Size size) {
    const v1::CreateJobRequest request = Request(id, size);
    v1::Job job;
    grpc::ClientContext context;
    Must(jobs.CreateJob(&context, request, &job), "CreateJob");
  }

  // One worker until `stop`: takes what it is given, begins and ends it.
  void Work(int index);
  void StopWorkers() { stop_ = true; }
  Stopwatch& watch() { return watch_; }

 private:
  void Prepare();
  void Upload(const std::string& data);
  void Answer(wv1::WorkerService::Stub& stub, const std::string& worker, const wv1::Assignment& a);

  std::string dir_;
  std::unique_ptr<server::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string model_;
  std::string dataset_;
  std::string adapter_sha_;
  Stopwatch watch_;
  std::atomic<bool> stop_{false};
};

void Bench::Upload(const std::string& data) {
  const auto blobs = v1::BlobService::NewStub(channel_);
  adapter_sha_ = Sha256Hex(data);
  v1::BeginUploadRequest begin;
  begin.set_sha256(adapter_sha_);
  begin.set_size_bytes(static_cast<int64_t>(data.size()));
  v1::UploadStatus state;
  grpc::ClientContext begin_context, context;
  Must(blobs->BeginUpload(&begin_context, begin, &state), "BeginUpload");
  auto stream = blobs->Upload(&context, &state);
  v1::UploadChunk chunk;
  chunk.set_upload_id(absl::StrCat(adapter_sha_, "-", data.size()));
  chunk.set_data(data);
  stream->Write(chunk);
  stream->WritesDone();
  Must(stream->Finish(), "Upload");
}

void Bench::Prepare() {
  v1::RegisterModelRequest model;
  model.set_path("tiny");
  v1::Model registered;
  grpc::ClientContext model_context, data_context;
  Must(v1::ModelService::NewStub(channel_)->RegisterModel(&model_context, model, &registered),
       "RegisterModel");
  model_ = registered.name();
  v1::CreateDatasetRequest rows;
  rows.set_path(dir_ + "/models/tiny/rows.jsonl");
  v1::Dataset dataset;
  Must(v1::DatasetService::NewStub(channel_)->CreateDataset(&data_context, rows, &dataset),
       "CreateDataset");
  dataset_ = dataset.name();
  Upload("adapter");
}

void Bench::Answer(wv1::WorkerService::Stub& stub, const std::string& worker,
                   const wv1::Assignment& a) {
  wv1::ReportProgressRequest report;
  wv1::Fence* fence = report.mutable_fence();
  fence->set_job_id(a.job_id());
  fence->set_epoch(a.epoch());
  fence->set_worker_id(worker);
  fence->set_incarnation("one");
  fence->set_token(a.token());
  const auto send = [&] {
    wv1::ReportProgressResponse response;
    grpc::ClientContext context;
    Must(stub.ReportProgress(&context, report, &response), "ReportProgress");
  };
  if (a.kind() == wv1::Assignment::CHECK) {
    report.mutable_check()->set_report_json("{}");
    report.mutable_check()->set_planned_steps(3);
    return send();
  }
  wv1::StepMetric* metric = report.add_metrics();
  metric->set_step(1);
  metric->set_loss(1);
  metric->set_tokens(10);
  metric->set_step_time_us(1000);
  send();
  report.clear_metrics();
  wv1::BlobRef* file = report.mutable_finished()->add_files();
  file->set_name("adapter_model.safetensors");
  file->set_sha256(adapter_sha_);
  file->set_size_bytes(7);
  report.mutable_finished()->set_step(1);
  send();
}

void Bench::Work(int index) {
  const auto stub = wv1::WorkerService::NewStub(Connect());
  const std::string worker = absl::StrCat("w", index);
  wv1::RegisterRequest request;
  request.set_worker_id(worker);
  request.set_incarnation("one");
  wv1::DeviceProfile* device = request.add_devices();
  device->set_id("cpu0");
  device->set_backend("cpu");
  device->set_capacity_bytes(kCapacityBytes);
  device->set_profile_json(absl::StrCat(
      R"({"act_bytes":2,"backend":"cpu","body":"avx2","build":"bench","capacity_bytes":)",
      kCapacityBytes, R"(,"fixed_bytes":1048576,"threads":1})"));
  wv1::RegisterResponse registered;
  grpc::ClientContext register_context;
  Must(stub->Register(&register_context, request, &registered), "Register");
  std::map<std::string, wv1::Assignment> running;  // held for ever, or just begun
  wv1::SynchronizeResponse answer;
  while (!stop_) {
    wv1::SynchronizeRequest sync;
    sync.set_worker_id(worker);
    sync.set_incarnation("one");
    sync.set_known_revision(answer.revision());
    for (const auto& [id, a] : running) {
      wv1::RunningAttempt* listed = sync.add_attempts();
      listed->set_job_id(id);
      listed->set_epoch(a.epoch());
      listed->set_device_id("cpu0");
      listed->set_phase(wv1::TRAINING);
    }
    grpc::ClientContext context;
    answer.Clear();
    const grpc::Status status = stub->Synchronize(&context, sync, &answer);
    if (stop_) return;
    Must(status, "Synchronize");
    for (const wv1::Assignment& a : answer.assignments()) watch_.Placed(a.job_id());
    for (const wv1::Assignment& a : answer.assignments()) {
      if (a.job_id().rfind("held", 0) == 0) {
        running[a.job_id()] = a;  // occupies its device
      } else if (a.want() == wv1::Assignment::RUN) {
        Answer(*stub, worker, a);
      }
    }
  }
}

double At(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1,
                         static_cast<size_t>(q * static_cast<double>(sorted.size())))];
}

void SubmitFor(Bench& bench, double rate, double seconds, int stream) {
  const auto jobs = v1::JobService::NewStub(bench.Connect());
  Random rng(static_cast<uint64_t>(stream) + 1);
  const auto begin = SteadyClock::now();
  double at_s = 0;
  for (int i = 0;; ++i) {
    at_s -= std::log(1 - rng.Unit()) / rate;
    if (at_s > seconds) return;
    std::this_thread::sleep_until(begin +
                                  std::chrono::microseconds(static_cast<int64_t>(at_s * 1e6)));
    const std::string id = absl::StrCat("s", stream, "-", i);
    bench.watch().Asked(id);
    bench.Submit(*jobs, id, Bench::Size::kSmall);
  }
}

int Main(int argc, char** argv) {
  double given[4] = {200, 20, 16, 200};
  for (int i = 1; i < argc && i <= 4; ++i) {
    if (!absl::SimpleAtod(absl::string_view(argv[i]), &given[i - 1]) || given[i - 1] < 0) {
      std::fputs("usage: nibble-bench-rpc [RATE [SECONDS [WORKERS [WAITING]]]]\n", stderr);
      return 2;
    }
  }
  // Prints its figures and no line for each job.
  setenv("NIBBLE_LOG", "warning", 0);
  InitLog("nibble-bench-rpc");
  const std::string dir =
      absl::StrCat(std::filesystem::temp_directory_path().string(), "/nibble-bench-rpc-", getpid());
  {
    Bench bench(dir);
    std::vector<std::thread> workers;
    for (int i = 0; i < static_cast<int>(given[2]); ++i)
      workers.emplace_back([&, i] { bench.Work(i); });
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const auto jobs = v1::JobService::NewStub(bench.Connect());
    for (int i = 0; i < static_cast<int>(given[2]); ++i)
      bench.Submit(*jobs, absl::StrCat("held-", i), Bench::Size::kHeld);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    for (int i = 0; i < static_cast<int>(given[3]); ++i)
      bench.Submit(*jobs, absl::StrCat("large-", i), Bench::Size::kWaiting);
    constexpr int kStreams = 8;
    std::vector<std::thread> streams;
    for (int i = 0; i < kStreams; ++i)
      streams.emplace_back([&, i] { SubmitFor(bench, given[0] / kStreams, given[1], i); });
    for (std::thread& t : streams) t.join();
    for (int i = 0; i < 50 && bench.watch().outstanding() > 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const std::vector<double> ms = bench.watch().Sorted();
    std::printf(
        "%zu jobs at %.0f a second, %d workers, %d jobs waiting: submit to placement p50 %.1f ms, "
        "p90 %.1f ms, p99 %.1f ms, worst %.1f ms; never placed: %zu\n",
        ms.size(), given[0], static_cast<int>(given[2]), static_cast<int>(given[3]), At(ms, 0.5),
        At(ms, 0.9), At(ms, 0.99), ms.empty() ? 0 : ms.back(), bench.watch().outstanding());
    bench.StopWorkers();
    for (std::thread& t : workers) t.join();
  }
  std::filesystem::remove_all(dir);
  return 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) { return nibble::bench::Main(argc, argv); }
