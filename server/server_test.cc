// The server in this process, over real gRPC: what a client sees of every service. What needs a second
// process (restart, TLS, signals, promtool) is in tests/integration/server_alone.py.
#include "server/server.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "nibble/v1/adapter.grpc.pb.h"
#include "nibble/v1/blob.grpc.pb.h"
#include "nibble/v1/dataset.grpc.pb.h"
#include "nibble/v1/fleet.grpc.pb.h"
#include "nibble/v1/job.grpc.pb.h"
#include "nibble/v1/model.grpc.pb.h"
#include "nibble/worker/v1/worker.grpc.pb.h"
#include "server/testing/absurd_specs.h"
#include "server/testing/served.h"
#include "server/testing/tiny_model.h"

namespace nibble::server {
namespace {

namespace wv1 = worker::v1;

constexpr char kProfile[] = R"({"act_bytes":2,"backend":"cpu","body":"avx2","build":"test",
    "capacity_bytes":1073741824,"fixed_bytes":1048576,"threads":1})";

std::string ReasonOf(const grpc::Status& status) {
  if (status.ok()) return "OK";
  const Details details = DetailsOf(status);
  EXPECT_EQ(details.status.code(), static_cast<int>(status.error_code()));
  EXPECT_FALSE(details.status.message().empty());
  EXPECT_EQ(details.info.domain(), "nibble");
  return details.info.reason();
}

std::string FieldOf(const grpc::Status& status) {
  const Details details = DetailsOf(status);
  return details.bad.field_violations().empty() ? "" : details.bad.field_violations(0).field();
}

class ServerTest : public ServedTest {
 protected:
  void SetUp() override {
    ServedTest::SetUp();
    jobs_ = v1::JobService::NewStub(channel_);
    datasets_ = v1::DatasetService::NewStub(channel_);
    models_ = v1::ModelService::NewStub(channel_);
    workers_ = wv1::WorkerService::NewStub(channel_);
  }

  std::string Upload(const std::string& data) {
    const auto blobs = v1::BlobService::NewStub(channel_);
    v1::BeginUploadRequest begin;
    begin.set_sha256(Sha256Hex(data));
    begin.set_size_bytes(static_cast<int64_t>(data.size()));
    v1::UploadStatus state;
    grpc::ClientContext begin_context, context;
    EXPECT_EQ(ReasonOf(blobs->BeginUpload(&begin_context, begin, &state)), "OK");
    if (state.complete()) return state.sha256();
    auto stream = blobs->Upload(&context, &state);
    v1::UploadChunk chunk;
    chunk.set_upload_id(begin.sha256() + absl::StrCat("-", data.size()));
    chunk.set_data(data);
    stream->Write(chunk);
    stream->WritesDone();
    EXPECT_EQ(ReasonOf(stream->Finish()), "OK");
    EXPECT_TRUE(state.complete());
    return state.sha256();
  }

  v1::Dataset MakeDataset() {
    v1::CreateDatasetRequest request;
    request.set_sha256(Upload("{\"text\":\"a b\"}\n{\"text\":\"b a\"}\n"));
    v1::Dataset dataset;
    grpc::ClientContext context;
    EXPECT_EQ(ReasonOf(datasets_->CreateDataset(&context, request, &dataset)), "OK");
    return dataset;
  }

  v1::Model MakeModel() {
    v1::RegisterModelRequest request;
    for (const auto& [name, data] : {std::pair<std::string, std::string>{"config.json", TinyConfig(256)},
                                     {"tokenizer.json", kTinyTokenizer},
                                     {"model.safetensors", TinyWeights()}}) {
      v1::ModelFile* file = request.add_manifest();
      file->set_name(name);
      file->set_size_bytes(static_cast<int64_t>(data.size()));
      file->set_sha256(Upload(data));
    }
    v1::Model model;
    grpc::ClientContext context;
    EXPECT_EQ(ReasonOf(models_->RegisterModel(&context, request, &model)), "OK");
    return model;
  }

  v1::CreateJobRequest JobRequest() {
    v1::CreateJobRequest request;
    request.mutable_spec()->set_base_model(MakeModel().name());
    request.mutable_spec()->set_dataset(MakeDataset().name());
    request.mutable_spec()->mutable_data()->set_sequence_len(64);
    return request;
  }

  grpc::Status Create(const v1::CreateJobRequest& request, v1::Job* job) {
    grpc::ClientContext context;
    return jobs_->CreateJob(&context, request, job);
  }

  wv1::SynchronizeResponse Synchronize(int64_t known_revision) {
    wv1::SynchronizeRequest request;
    request.set_worker_id("w1");
    request.set_incarnation("one");
    request.set_known_revision(known_revision);
    for (const auto& attempt : running_) *request.add_attempts() = attempt;
    wv1::SynchronizeResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(ReasonOf(workers_->Synchronize(&context, request, &response)), "OK");
    return response;
  }

  // Registers, and synchronizes until the job is assigned; CHECKs on the way are answered.
  wv1::Assignment TakeJob(const std::string& job_id) {
    wv1::RegisterRequest request;
    request.set_worker_id("w1");
    request.set_incarnation("one");
    wv1::DeviceProfile* device = request.add_devices();
    device->set_id("cpu0");
    device->set_backend("cpu");
    device->set_capacity_bytes(int64_t{1} << 30);
    device->set_profile_json(kProfile);
    wv1::RegisterResponse response;
    grpc::ClientContext context;
    EXPECT_EQ(ReasonOf(workers_->Register(&context, request, &response)), "OK");
    EXPECT_EQ(response.lease_lost_ms(), 6000);
    int64_t revision = 0;
    for (int round = 0; round < 20; ++round) {
      const auto answer = Synchronize(revision);
      revision = answer.revision();
      running_.clear();
      for (const wv1::Assignment& a : answer.assignments()) {
        if (a.job_id() == job_id) return a;
        wv1::ReportProgressRequest report;
        *report.mutable_fence() = FenceOf(a);
        report.mutable_check()->set_report_json("{}");
        report.mutable_check()->set_planned_steps(3);
        EXPECT_EQ(ReasonOf(Report(report)), "OK");
      }
    }
    ADD_FAILURE() << "the job was never assigned";
    return {};
  }

  static wv1::Fence FenceOf(const wv1::Assignment& a) {
    wv1::Fence fence;
    fence.set_job_id(a.job_id());
    fence.set_epoch(a.epoch());
    fence.set_worker_id("w1");
    fence.set_incarnation("one");
    fence.set_token(a.token());
    return fence;
  }

  grpc::Status Report(const wv1::ReportProgressRequest& request) {
    wv1::ReportProgressResponse response;
    grpc::ClientContext context;
    return workers_->ReportProgress(&context, request, &response);
  }

  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::DatasetService::Stub> datasets_;
  std::unique_ptr<v1::ModelService::Stub> models_;
  std::unique_ptr<wv1::WorkerService::Stub> workers_;
  std::vector<wv1::RunningAttempt> running_;
};

TEST_F(ServerTest, RepeatedRequestIdsMakeOneJob) {
  v1::CreateJobRequest request = JobRequest();
  request.set_request_id("4c7b8b1e-0000-4000-8000-000000000001");
  v1::Job first, second;
  ASSERT_EQ(ReasonOf(Create(request, &first)), "OK");
  EXPECT_EQ(first.state(), v1::QUEUED);
  EXPECT_EQ(first.effective_spec().lora().r(), 16);
  EXPECT_FALSE(first.spec().lora().has_r());
  ASSERT_EQ(ReasonOf(Create(request, &second)), "OK");
  EXPECT_EQ(second.name(), first.name());
  request.set_priority(3);
  EXPECT_EQ(ReasonOf(Create(request, &second)), "REQUEST_ID_REUSED");
}

TEST_F(ServerTest, ErrorsNameReasonAndField) {
  const v1::CreateJobRequest good = JobRequest();
  v1::Job job;
  v1::CreateJobRequest bad = good;
  bad.mutable_spec()->mutable_lora()->set_r(0);
  grpc::Status status = Create(bad, &job);
  EXPECT_EQ(ReasonOf(status), "SPEC_INVALID");
  EXPECT_EQ(FieldOf(status), "spec.lora.r");
  bad = good;
  bad.mutable_spec()->set_base_model("models/none");
  EXPECT_EQ(ReasonOf(Create(bad, &job)), "BASE_MODEL_NOT_FOUND");
  bad.mutable_spec()->set_base_model("models/../x");
  EXPECT_EQ(ReasonOf(Create(bad, &job)), "NAME_INVALID");
  bad = good;
  bad.set_job_id("Not A Name");
  status = Create(bad, &job);
  EXPECT_EQ(ReasonOf(status), "NAME_INVALID");
  EXPECT_EQ(FieldOf(status), "job_id");
  bad = good;
  bad.set_validate_only(true);
  EXPECT_EQ(ReasonOf(Create(bad, &job)), "OK");
  EXPECT_EQ(job.name(), "");
  bad.mutable_spec()->mutable_data()->set_format("messages");
  status = Create(bad, &job);
  EXPECT_EQ(ReasonOf(status), "DATASET_SCHEMA_MISMATCH");
  EXPECT_EQ(FieldOf(status), "spec.data.format");
  v1::PlanJobRequest plan;
  *plan.mutable_spec() = bad.spec();
  v1::PlanJobResponse answer;
  grpc::ClientContext plan_context;
  EXPECT_EQ(FieldOf(jobs_->PlanJob(&plan_context, plan, &answer)), "spec.data.format");

  v1::RegisterModelRequest escape;
  escape.set_path("../..");
  v1::Model model;
  grpc::ClientContext context;
  EXPECT_EQ(ReasonOf(models_->RegisterModel(&context, escape, &model)), "PATH_NOT_ALLOWED");
}

TEST_F(ServerTest, AbsurdRecipesMakeNoJob) {
  const v1::CreateJobRequest good = JobRequest();
  for (const AbsurdSpec& c : AbsurdSpecs()) {
    v1::CreateJobRequest bad = good;
    c.spoil(*bad.mutable_spec());
    v1::Job job;
    const grpc::Status status = Create(bad, &job);
    EXPECT_EQ(ReasonOf(status), "SPEC_INVALID") << c.field;
    EXPECT_EQ(FieldOf(status), c.field);
    EXPECT_NE(DetailsOf(status).bad.field_violations(0).description().find(c.bound), std::string::npos)
        << c.field;
  }
  v1::ListJobsResponse jobs;
  grpc::ClientContext context;
  ASSERT_EQ(ReasonOf(jobs_->ListJobs(&context, {}, &jobs)), "OK");
  EXPECT_EQ(jobs.jobs_size(), 0);
}

// A worker's devices through the whole of Register: nobody is let in with figures that no sum survives.
TEST_F(ServerTest, AbsurdDevicesAreNotRegistered) {
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min(),
                              std::numeric_limits<int64_t>::max()}) {
    wv1::RegisterRequest request;
    request.set_worker_id("w1");
    request.set_incarnation("one");
    wv1::DeviceProfile* device = request.add_devices();
    device->set_id("cpu0");
    device->set_backend("cpu");
    device->set_capacity_bytes(bytes);
    device->set_profile_json(kProfile);
    wv1::RegisterResponse response;
    grpc::ClientContext context;
    const grpc::Status status = workers_->Register(&context, request, &response);
    EXPECT_EQ(ReasonOf(status), "SPEC_INVALID") << bytes;
    EXPECT_EQ(FieldOf(status), "devices[0].capacity_bytes");
  }
}

TEST_F(ServerTest, ModelsAndDataSetsByPath) {
  ASSERT_TRUE(MakeDirs(directory_.Join("models/tiny")).ok());
  for (const auto& [name, data] : {std::pair<std::string, std::string>{"config.json", TinyConfig(256)},
                                   {"tokenizer.json", kTinyTokenizer},
                                   {"model.safetensors", TinyWeights()},
                                   {"README.md", "not part of it"}, {"rows.jsonl", "{\"text\":\"a\"}\n"}}) {
    ASSERT_TRUE(WriteFileAtomic(directory_.Join("models/tiny/" + name), data).ok());
  }
  v1::RegisterModelRequest request;
  request.set_path("tiny");
  v1::Model model;
  grpc::ClientContext context, again, data_context;
  ASSERT_EQ(ReasonOf(models_->RegisterModel(&context, request, &model)), "OK");
  EXPECT_EQ(model.files_size(), 3);
  EXPECT_EQ(model.display_name(), "tiny");
  v1::Model same;
  ASSERT_EQ(ReasonOf(models_->RegisterModel(&again, request, &same)), "OK");
  EXPECT_EQ(same.name(), model.name());
  v1::CreateDatasetRequest rows;
  rows.set_path(directory_.Join("models/tiny/rows.jsonl"));
  v1::Dataset dataset;
  ASSERT_EQ(ReasonOf(datasets_->CreateDataset(&data_context, rows, &dataset)), "OK");
  EXPECT_EQ(dataset.rows(), 1);
}

// A page is one message, whatever its jobs bring along: it ends early, and the next one goes on there.
TEST_F(ServerTest, APageOfLargeJobsFitsAMessage) {
  v1::CreateJobRequest request = JobRequest();
  for (int i = 0; i < 64; ++i) (*request.mutable_labels())[absl::StrCat("key-", i)] = std::string(256, 'v');
  constexpr int kJobs = 150;
  std::vector<std::string> created;
  v1::Job job;
  for (int i = 0; i < kJobs; ++i) {
    ASSERT_EQ(ReasonOf(Create(request, &job)), "OK");
    created.insert(created.begin(), job.name());
  }
  v1::ListJobsRequest list;
  list.set_page_size(1000);
  v1::ListJobsResponse page;
  std::vector<std::string> listed;
  int pages = 0;
  do {
    grpc::ClientContext context;
    ASSERT_EQ(ReasonOf(jobs_->ListJobs(&context, list, &page)), "OK");
    EXPECT_LT(page.ByteSizeLong(), size_t{3} << 20);
    for (const v1::Job& shown : page.jobs()) listed.push_back(shown.name());
    list.set_page_token(page.next_page_token());
  } while (++pages < kJobs && !page.next_page_token().empty());
  EXPECT_GT(pages, 1);
  EXPECT_EQ(listed, created) << "newest first, each once";
  // Of those that live and of those that do not; of the latter there is one.
  grpc::ClientContext cancel, of_cancelled, of_queued;
  v1::CancelJobRequest verb;
  verb.set_name(created[7]);
  ASSERT_EQ(ReasonOf(jobs_->CancelJob(&cancel, verb, &job)), "OK");
  list.clear_page_token();
  list.add_states(v1::CANCELLED);
  ASSERT_EQ(ReasonOf(jobs_->ListJobs(&of_cancelled, list, &page)), "OK");
  ASSERT_EQ(page.jobs_size(), 1);
  EXPECT_EQ(page.jobs(0).name(), created[7]);
  EXPECT_EQ(page.next_page_token(), "");
  list.clear_states();
  list.add_states(v1::QUEUED);
  list.set_page_size(10);
  ASSERT_EQ(ReasonOf(jobs_->ListJobs(&of_queued, list, &page)), "OK");
  ASSERT_EQ(page.jobs_size(), 10);
  EXPECT_EQ(page.jobs(6).name(), created[6]);
  EXPECT_EQ(page.jobs(7).name(), created[8]);
}

TEST_F(ServerTest, PagesAreBoundToTheirFilter) {
  v1::CreateJobRequest request = JobRequest();
  v1::Job job;
  for (int i = 0; i < 3; ++i) ASSERT_EQ(ReasonOf(Create(request, &job)), "OK");
  v1::ListJobsRequest list;
  list.set_page_size(2);
  v1::ListJobsResponse page;
  grpc::ClientContext first, second, third;
  ASSERT_EQ(ReasonOf(jobs_->ListJobs(&first, list, &page)), "OK");
  ASSERT_EQ(page.jobs_size(), 2);
  EXPECT_EQ(page.jobs(0).name(), job.name()) << "newest first";
  list.set_page_token(page.next_page_token());
  ASSERT_EQ(ReasonOf(jobs_->ListJobs(&second, list, &page)), "OK");
  EXPECT_EQ(page.jobs_size(), 1);
  EXPECT_EQ(page.next_page_token(), "");
  list.add_states(v1::QUEUED);
  EXPECT_EQ(ReasonOf(jobs_->ListJobs(&third, list, &page)), "PAGE_TOKEN_INVALID");
}

TEST_F(ServerTest, AWatchShowsTheJobToItsEndAndResumes) {
  v1::Job job;
  ASSERT_EQ(ReasonOf(Create(JobRequest(), &job)), "OK");
  grpc::ClientContext watch_context;
  v1::WatchJobRequest request;
  request.set_name(job.name());
  auto watch = jobs_->WatchJob(&watch_context, request);
  v1::WatchJobResponse update;
  ASSERT_TRUE(watch->Read(&update));
  EXPECT_EQ(update.snapshot().name(), job.name());
  const wv1::Assignment assignment = TakeJob(job.name().substr(5));
  wv1::ReportProgressRequest report;
  *report.mutable_fence() = FenceOf(assignment);
  for (int step = 1; step <= 3; ++step) {
    wv1::StepMetric* metric = report.add_metrics();
    metric->set_step(step);
    metric->set_loss(1.0 / step);
    metric->set_tokens(10);
  }
  ASSERT_EQ(ReasonOf(Report(report)), "OK");
  report.clear_metrics();
  report.mutable_failed()->set_reason("LOSS_NOT_FINITE");
  report.mutable_failed()->set_message("at step 4");
  ASSERT_EQ(ReasonOf(Report(report)), "OK");
  std::vector<int64_t> steps, sequences;
  std::string last_type;
  while (watch->Read(&update)) {
    if (update.has_metric()) steps.push_back(update.metric().step());
    if (update.has_event()) {
      sequences.push_back(update.event().sequence());
      last_type = update.event().type();
    }
  }
  EXPECT_EQ(ReasonOf(watch->Finish()), "OK");
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(last_type, "job.failed");
  for (size_t i = 1; i < sequences.size(); ++i) EXPECT_EQ(sequences[i], sequences[i - 1] + 1);

  // From the middle: exactly what is after it.
  request.set_after_sequence(sequences[0]);
  request.set_after_step(2);
  grpc::ClientContext again_context;
  auto again = jobs_->WatchJob(&again_context, request);
  std::vector<int64_t> again_steps, again_sequences;
  while (again->Read(&update)) {
    if (update.has_metric()) again_steps.push_back(update.metric().step());
    if (update.has_event()) again_sequences.push_back(update.event().sequence());
  }
  EXPECT_EQ(ReasonOf(again->Finish()), "OK");
  EXPECT_EQ(again_steps, std::vector<int64_t>{3});
  EXPECT_EQ(again_sequences, std::vector<int64_t>(sequences.begin() + 1, sequences.end()));

  request.set_after_sequence(1000);
  grpc::ClientContext late_context;
  auto late = jobs_->WatchJob(&late_context, request);
  EXPECT_FALSE(late->Read(&update));
  EXPECT_EQ(ReasonOf(late->Finish()), "SEQUENCE_EXPIRED");

  grpc::ClientContext get_context;
  v1::GetJobRequest get;
  get.set_name(job.name());
  ASSERT_EQ(ReasonOf(jobs_->GetJob(&get_context, get, &job)), "OK");
  EXPECT_EQ(job.state(), v1::FAILED);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(job.error().details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "LOSS_NOT_FINITE");
  // The attempt is over: what comes late is refused.
  report.Clear();
  *report.mutable_fence() = FenceOf(assignment);
  report.add_metrics()->set_step(4);
  EXPECT_EQ(ReasonOf(Report(report)), "STALE_ATTEMPT");
}

TEST_F(ServerTest, StoppingEndsWatchesWithWhereToGoOn) {
  v1::Job job;
  ASSERT_EQ(ReasonOf(Create(JobRequest(), &job)), "OK");
  grpc::ClientContext context;
  v1::WatchJobRequest request;
  request.set_name(job.name());
  auto watch = jobs_->WatchJob(&context, request);
  v1::WatchJobResponse update;
  ASSERT_TRUE(watch->Read(&update));
  std::thread stopper([this] { server_->Stop(5'000'000); });
  while (watch->Read(&update)) {
  }
  EXPECT_EQ(ReasonOf(watch->Finish()), "SHUTTING_DOWN");
  stopper.join();
}

TEST(StartServer, RefusesToBeReachedWithoutTls) {
  TempDir directory;
  ServerOptions options;
  options.data_dir = directory.path();
  options.in_memory = true;
  options.listen = "0.0.0.0:0";
  const auto server = StartServer(options);
  ASSERT_FALSE(server.ok());
  EXPECT_NE(std::string(server.status().message()).find("--tls-cert"), std::string::npos) << server.status();
}

// It would take all blobs for orphans.
TEST(StartServer, RefusesFilesOfJobsWithoutTheirDatabase) {
  TempDir directory;
  ServerOptions options;
  options.data_dir = directory.path();
  options.listen = "127.0.0.1:0";
  options.http_listen = "127.0.0.1:0";
  { ASSERT_TRUE(StartServer(options).ok()); }
  const std::string database = directory.Join("state.db"), blob = directory.Join("blobs/cas/ab/abcd");
  const auto begin_without = [&](const char* what) {
    for (const char* end : {"-wal", "-shm"}) (void)RemoveFile(database + end);
    const auto server = StartServer(options);
    ASSERT_FALSE(server.ok()) << what;
    EXPECT_EQ(StatusReason(server.status()), Reason::kStoreUnavailable);
    EXPECT_NE(std::string(server.status().message()).find(what), std::string::npos) << server.status();
    EXPECT_TRUE(FileExists(blob));
  };
  ASSERT_TRUE(MakeDirs(directory.Join("blobs/cas/ab")).ok());
  ASSERT_TRUE(WriteFileAtomic(blob, "of a job").ok());
  ASSERT_TRUE(WriteFileAtomic(database, "").ok());
  begin_without("state.db is empty");
  ASSERT_TRUE(RemoveFile(database).ok());
  begin_without("state.db is missing");
  ASSERT_TRUE(RemoveFile(blob).ok());
  EXPECT_TRUE(StartServer(options).ok()) << "with nothing to lose it begins anew";
}

// gRPC listens on 34463 when it is told 99999.
TEST(StartServer, RefusesWhatIsNoAddress) {
  TempDir directory;
  ServerOptions options;
  options.data_dir = directory.path();
  options.in_memory = true;
  for (const char* listen :
       {"127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:70x", "nonsense", ":7070", "unix:", ""}) {
    options.listen = listen;
    options.http_listen = "";
    const auto server = StartServer(options);
    ASSERT_FALSE(server.ok()) << listen;
    EXPECT_NE(std::string(server.status().message()).find("HOST:PORT"), std::string::npos) << server.status();
    if (*listen == '\0') continue;  // none
    options.listen = "127.0.0.1:0";
    options.http_listen = listen;
    EXPECT_FALSE(StartServer(options).ok()) << listen;
  }
}

TEST(StartServer, ADirectoryHasOneServer) {
  TempDir directory;
  ServerOptions options;
  options.data_dir = directory.path();
  options.in_memory = true;
  options.listen = "127.0.0.1:0";
  options.http_listen = "127.0.0.1:0";
  const auto first = StartServer(options);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_GT((*first)->http_port(), 0);
  EXPECT_FALSE(StartServer(options).ok());
}

}  // namespace
}  // namespace nibble::server
