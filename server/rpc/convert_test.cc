#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "engine/spec/testing/no_defaults.h"
#include "google/rpc/error_details.pb.h"
#include "server/job_head.h"
#include "server/rpc/convert_spec.h"
#include "server/rpc/job_request.h"
#include "server/rpc/page.h"
#include "server/rpc/status.h"
#include "server/rpc/worker_convert.h"

namespace nibble::server {
namespace {

TEST(ConvertSpec, UnsetKeepsTheDefaults) {
  const auto spec = ToTrainSpec(v1::JobSpec());
  ASSERT_TRUE(spec.ok()) << spec.status();
  spec::TrainSpec unset;
  unset.sequence_len = -1;  // the model says how long
  EXPECT_EQ(*spec, unset);
}

TEST(ConvertSpec, EveryFieldSurvivesTheRoundTrip) {
  spec::TrainSpec in = spec::NoDefaults();
  // In the API fields may stand beside each other that exclude each other in a recipe.
  in.format = "alpaca";
  in.warmup_ratio = 0.2;
  in.evals_per_epoch = 2.5;
  in.saves_per_epoch = 0;
  in.recompute = spec::Recompute::kKeepGemmOutputs;
  in.keep_blocks = 3;
  in.base_cache = spec::BaseCache::kOn;
  in.seed = std::numeric_limits<uint64_t>::max();
  const auto out = ToTrainSpec(ToJobSpec(in));
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(*out, in);
}

TEST(ConvertSpec, EveryFieldOfTheProtoIsWritten) {
  // A field added to the proto and forgotten here would stay unset.
  spec::TrainSpec in;
  in.target_modules = {spec::Module::kQ};
  in.val_set_size = 0.1;
  in.warmup_steps = in.max_steps = in.eval_steps = in.save_steps = 1;
  in.evals_per_epoch = in.saves_per_epoch = 1;
  const v1::JobSpec out = ToJobSpec(in);
  for (const google::protobuf::Message* part :
       std::initializer_list<const google::protobuf::Message*>{
           &out.lora(), &out.quantization(), &out.data(), &out.optimizer(), &out.training()}) {
    const auto* descriptor = part->GetDescriptor();
    std::vector<const google::protobuf::FieldDescriptor*> set;
    part->GetReflection()->ListFields(*part, &set);
    EXPECT_EQ(static_cast<int>(set.size()), descriptor->field_count()) << descriptor->name();
  }
}

TEST(ConvertSpec, NamesAllThatIsWrong) {
  v1::JobSpec spec;
  spec.mutable_quantization()->set_type("nf5");
  spec.mutable_optimizer()->set_lr_scheduler("zigzag");
  spec.mutable_lora()->add_target_modules("q_proj");
  spec.mutable_lora()->add_target_modules("nose");
  const auto out = ToTrainSpec(spec);
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(StatusReason(out.status()), Reason::kSpecInvalid);
  const auto violations = StatusViolations(UnderSpec(out.status()));
  ASSERT_EQ(violations.size(), 3u);
  EXPECT_EQ(violations[0].field, "spec.lora.target_modules[1]");
  EXPECT_EQ(violations[1].field, "spec.quantization.type");
  EXPECT_EQ(violations[2].field, "spec.optimizer.lr_scheduler");
}

TEST(CreateJobRequest, BodyDigestIgnoresTheRequestIdAndTheOrderOfLabels) {
  v1::CreateJobRequest a, b;
  for (v1::CreateJobRequest* request : {&a, &b}) {
    request->mutable_spec()->set_base_model("models/m");
    request->mutable_spec()->set_dataset("datasets/d");
  }
  for (int i = 0; i < 20; ++i) (*a.mutable_labels())[std::to_string(i)] = "x";
  for (int i = 20; i-- > 0;) (*b.mutable_labels())[std::to_string(i)] = "x";
  a.set_request_id("one");
  b.set_request_id("two");
  const auto first = ReadCreateJob(a, "t"), second = ReadCreateJob(b, "t");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->body_sha256, second->body_sha256);
  EXPECT_NE(first->job_id, second->job_id);
  b.set_priority(1);
  EXPECT_NE(ReadCreateJob(b, "t")->body_sha256, first->body_sha256);
}

TEST(ToRpcStatus, EveryErrorCarriesAReason) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status plain(static_cast<absl::StatusCode>(code), "/secret/path");
    const google::rpc::Status rich = ToRpcStatus(plain);
    google::rpc::ErrorInfo info;
    ASSERT_GE(rich.details_size(), 1);
    ASSERT_TRUE(rich.details(0).UnpackTo(&info));
    EXPECT_EQ(info.domain(), "nibble");
    const Reason reason = ReasonFromName(info.reason());
    EXPECT_NE(reason, Reason::kUnspecified) << info.reason();
    EXPECT_EQ(rich.code(), static_cast<int>(ReasonCode(reason)));
    EXPECT_EQ(rich.message().find("/secret"), std::string::npos) << rich.message();
    EXPECT_TRUE(reason == Reason::kInternal || reason == Reason::kStoreUnavailable)
        << "what a library says of a file is not about the caller: " << info.reason();
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

// Where the server keeps its files is its operator's business.
TEST(ToRpcStatus, NamesNoFilesOfTheServers) {
  const auto message = [](const absl::Status& status) { return ToRpcStatus(status).message(); };
  EXPECT_EQ(message(Error(Reason::kStoreUnavailable, "/var/lib/nibble/state.db: disk I/O error (522)")),
            "the server cannot read or write its database now; its log says why; try again");
  EXPECT_EQ(message(ErrnoStatus(ENOSPC, "write /no/such/place/u")),
            "the server's disk is full; make room there and try again");
  const Error full = Error(Reason::kStorageFull, "write /var/lib/nibble/u: no space");
  EXPECT_EQ(message(Error(full).With("free_bytes", "1610612736")),
            "the server's disk is full (1.50 GiB free); make room there and try again");
  EXPECT_EQ(message(Error(Reason::kStorageFull, "it needs 5 bytes and 3 are free")),
            "it needs 5 bytes and 3 are free");
}

// Trailers are bounded at 8 KiB, and details travel in base64: a data set with thousands of bad
// rows must still say what is wrong with the first ones.
TEST(ToRpcStatus, FitsIntoTrailersHoweverMuchIsWrong) {
  Error error(Reason::kDatasetSchemaMismatch, std::string(5000, 'm'));
  for (int i = 0; i < 100; ++i) {
    error.Violation("rows[" + std::to_string(i) + "]", std::string(500, 'd'))
        .With("k" + std::to_string(i), "v");
  }
  const grpc::Status status = ToGrpcStatus(error);
  EXPECT_LT(status.error_message().size() + status.error_details().size() * 4 / 3, 7u << 10);
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(status.error_details()));
  google::rpc::BadRequest bad;
  ASSERT_TRUE(rich.details(1).UnpackTo(&bad));
  ASSERT_GT(bad.field_violations_size(), 3);
  EXPECT_EQ(bad.field_violations(0).field(), "rows[0]");
  EXPECT_TRUE(status.error_message().ends_with("..."));
}

TEST(ToRpcStatus, KeepsMetadataAndViolations) {
  const absl::Status status =
      Error::Field(Reason::kSpecInvalid, "spec.lora.r", "is 0").With("bound", "1").ToStatus();
  const grpc::Status out = ToGrpcStatus(status);
  EXPECT_EQ(out.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::Status rich;
  ASSERT_TRUE(rich.ParseFromString(out.error_details()));
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad;
  ASSERT_TRUE(rich.details(0).UnpackTo(&info));
  ASSERT_TRUE(rich.details(1).UnpackTo(&bad));
  EXPECT_EQ(info.metadata().at("bound"), "1");
  EXPECT_EQ(bad.field_violations(0).field(), "spec.lora.r");
}

TEST(Pages, GoOnWhereTheLastOneEnded) {
  const std::map<std::string, std::string> items = {{"a", "a"}, {"b", "b"}, {"c", "c"}, {"d", "d"}};
  std::string seen;
  const auto keep = [](const std::string& item) { return item != "c"; };
  const auto visit = [&](const std::string& item) { seen += item; };
  auto token = ListPage(items, "q", 2, "", keep, visit);
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(seen, "ab");
  ASSERT_NE(*token, "");
  const std::string first = *token;
  token = ListPage(items, "q", 2, first, keep, visit);
  EXPECT_EQ(seen, "abd");
  EXPECT_EQ(*token, "");
  EXPECT_EQ(StatusReason(ListPage(items, "other", 2, first, keep, visit).status()),
            Reason::kPageTokenInvalid);
  EXPECT_EQ(StatusReason(ListPage(items, "q", 2, "nonsense", keep, visit).status()),
            Reason::kPageTokenInvalid);
  EXPECT_EQ(StatusReason(ListPage(items, "q", -1, "", keep, visit).status()), Reason::kSpecInvalid);
  EXPECT_EQ(PageSize(0).value(), kDefaultPageSize);
  EXPECT_EQ(PageSize(1 << 30).value(), kMaxPageSize);
}

// A worker that has lost count: nothing the server computes with its figures leaves 64 bits.
TEST(ReadMetrics, FiguresThatCannotBeAreBounded) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  worker::v1::ReportProgressRequest request;
  for (const int64_t step : {int64_t{1}, int64_t{2}, kMost, -kMost}) {
    worker::v1::StepMetric* const metric = request.add_metrics();
    metric->set_step(step);
    metric->set_tokens(step < 0 ? step : kMost);
    metric->set_step_time_us(kMost);
    metric->set_used_bytes(kMost);
  }
  request.mutable_plan()->set_planned_steps(kMost);
  core::Progress head;
  head.trained_tokens = int64_t{1} << 60;
  head = HeadAfter(head, ReadMetrics(request));
  EXPECT_EQ(head.step, 1 << 30);
  EXPECT_EQ(head.trained_tokens, int64_t{1} << 60);
  EXPECT_EQ(head.used_bytes, int64_t{1} << 60);
  core::Job job;
  job.state = core::JobState::kRunning;
  job.progress = head;
  job.progress.step = 0;
  job.progress.planned_steps = std::get<core::ReportPlan>(*ReadReport(request)).planned_steps;
  EXPECT_EQ(job.progress.planned_steps, 1 << 30);
  EXPECT_EQ(core::EstimatedEndUnixUs(job, int64_t{1} << 51), 0) << "no date";
}

TEST(ReadReport, SaysThatNoCheckpointWillDo) {
  worker::v1::ReportProgressRequest request;
  request.mutable_failed()->set_reason("CHECKPOINT_INVALID");
  EXPECT_FALSE(std::get<core::ReportFailed>(*ReadReport(request)).all_checkpoints);
  request.mutable_failed()->set_all_checkpoints(true);
  EXPECT_TRUE(std::get<core::ReportFailed>(*ReadReport(request)).all_checkpoints);
}

// JSON has no NaN; what stands for one, and figures that are no whole ones of 63 bits, are refused by key.
TEST(ReadRegister, ProfilesWithAbsurdFiguresAreRefused) {
  worker::v1::RegisterRequest request;
  worker::v1::DeviceProfile* device = request.add_devices();
  const auto read = [&](const std::string& json) {
    device->set_profile_json(json);
    return ReadRegister(request).status();
  };
  const std::string fine = R"({"act_bytes":2,"backend":"cpu","body":"avx2","build":"test","threads":1,)";
  EXPECT_TRUE(read(fine + R"("linear_mflop_per_s":9223372036854775807})").ok());
  for (const char* key : {"linear_mflop_per_s", "fixed_bytes", "capacity_bytes", "pinned_capacity_bytes",
                          "host_capacity_bytes", "threads", "act_bytes"}) {
    for (const char* value : {"NaN", "nan", "\"NaN\"", "null", "-1", "1e308", "1e999", "0.5", "[]",
                              "9223372036854775808", "18446744073709551615", "18446744073709551616"}) {
      const absl::Status status = read(absl::StrCat(fine, "\"", key, "\":", value, "}"));
      ASSERT_FALSE(StatusViolations(status).empty()) << key << " " << value << ": " << status;
      EXPECT_EQ(StatusViolations(status)[0].field, "devices[0].profile_json") << key << " " << value;
    }
  }
  // Measured to the page at each start, but equal machines are alike; never less than was measured.
  for (const int64_t measured : {17'276'928, 17'453'056}) {
    device->set_profile_json(absl::StrCat(fine, "\"fixed_bytes\":", measured, "}"));
    EXPECT_EQ(ReadRegister(request)->devices[0].profile.fixed_bytes, 20 << 20);
  }
  EXPECT_FALSE(read("").ok());
  EXPECT_FALSE(read(std::string(100'000, '[')).ok());
}

TEST(ReadSynchronize, TakesPhasesItDoesNotKnow) {
  worker::v1::SynchronizeRequest request;
  request.set_worker_id("w");
  request.add_attempts()->set_phase(worker::v1::TRAINING);
  request.add_attempts()->set_phase(static_cast<worker::v1::AttemptPhase>(99));
  const core::Synchronize out = ReadSynchronize(request);
  ASSERT_EQ(out.attempts.size(), 2u);
  EXPECT_EQ(out.attempts[0].phase, core::Phase::kTraining);
  EXPECT_EQ(out.attempts[1].phase, core::Phase::kUnspecified);
}

}  // namespace
}  // namespace nibble::server
