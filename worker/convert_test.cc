#include "worker/convert.h"

#include <gtest/gtest.h>

namespace nibble::worker {
namespace {

WorkerIdentity Identity() {
  WorkerIdentity identity;
  identity.worker_id = "w1";
  identity.incarnation = "i1";
  identity.version = "1";
  DeviceInfo device;
  device.id = "cpu0";
  device.profile.capacity_bytes = 5;
  identity.devices.push_back(device);
  return identity;
}

TEST(ConvertTest, ReportsCarryTheFence) {
  DoReport action;
  action.report.key = {"job", 4};
  action.report.token = "token";
  action.report.metrics.push_back({.step = 7, .loss = 0.5, .eval_loss = 0.25});
  action.report.body = CheckpointReport{7, {{"a", "sha", 3}}, "manifest", 0.5};
  const auto out = ToProto(Identity(), action);
  EXPECT_EQ(out.fence().job_id(), "job");
  EXPECT_EQ(out.fence().epoch(), 4);
  EXPECT_EQ(out.fence().worker_id(), "w1");
  EXPECT_EQ(out.fence().incarnation(), "i1");
  EXPECT_EQ(out.fence().token(), "token");
  EXPECT_EQ(out.metrics(0).eval_loss(), 0.25);
  EXPECT_EQ(out.checkpoint().files(0).size_bytes(), 3);
  action.report.body = FailedReport{"POISON", "m", true, true};
  EXPECT_TRUE(ToProto(Identity(), action).failed().neighbour_fault());
  EXPECT_FALSE(ToProto(Identity(), action).failed().all_checkpoints());
  action.report.body = FailedReport{"CHECKPOINT_INVALID", "m", true, false, true};
  EXPECT_TRUE(ToProto(Identity(), action).failed().all_checkpoints());
  action.report.body = std::monostate();
  EXPECT_EQ(ToProto(Identity(), action).report_case(), v1::ReportProgressRequest::REPORT_NOT_SET);
}

TEST(ConvertTest, MessagesThatAreNoTextAreReadableThere) {
  DoReport action;
  action.report.key = {"job", 4};
  action.report.body = FailedReport{"ENGINE_FAILED", "its log ends: \x9f\x98\x80 caf\xc3", true, false};
  v1::ReportProgressRequest read;
  ASSERT_TRUE(read.ParseFromString(ToProto(Identity(), action).SerializeAsString()));
  EXPECT_EQ(read.failed().message(), "its log ends: \xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd caf\xef\xbf\xbd");
}

TEST(ConvertTest, AFaultTravelsAsText) {
  DoSynchronize action;
  action.request.devices.push_back({"cuda0", 7, {"base"}, "Xid 79 caf\xc3"});
  v1::SynchronizeRequest read;
  ASSERT_TRUE(read.ParseFromString(ToProto(Identity(), action).SerializeAsString()));
  EXPECT_EQ(read.devices(0).fault(), "Xid 79 caf\xef\xbf\xbd");
}

TEST(ConvertTest, RegisterDescribesDevices) {
  const auto out = ToProto(Identity(), DoRegister{"t", 9});
  EXPECT_EQ(out.generation_seen(), 9);
  EXPECT_EQ(out.devices(0).capacity_bytes(), 5);
  EXPECT_FALSE(out.devices(0).profile_json().empty());
}

TEST(ConvertTest, AssignmentsThatCannotBeReadAreLeftOut) {
  v1::SynchronizeResponse response;
  response.set_revision(3);
  auto* good = response.add_assignments();
  good->set_job_id("a");
  good->set_epoch(1);
  good->set_kind(v1::Assignment::CHECK);
  good->set_want(v1::Assignment::RELEASE);
  good->set_spec_json(spec::TrainSpecToJson({}));
  good->mutable_dataset()->set_sha256("d");
  *response.add_assignments() = *good;
  response.mutable_assignments(1)->set_spec_json("nonsense");
  const SynchronizeReply reply = FromProto(5, response);
  EXPECT_EQ(reply.id, 5);
  EXPECT_EQ(reply.code, SynchronizeReply::Code::kOk);
  ASSERT_EQ(reply.assignments.size(), 1u);
  EXPECT_EQ(reply.assignments[0].kind, Kind::kCheck);
  EXPECT_EQ(reply.assignments[0].want, Want::kRelease);
  EXPECT_EQ(reply.assignments[0].dataset->sha256, "d");
  EXPECT_FALSE(reply.assignments[0].eval_dataset.has_value());
  response.set_register_again(true);
  EXPECT_EQ(FromProto(5, response).code, SynchronizeReply::Code::kRegisterAgain);
}

}  // namespace
}  // namespace nibble::worker
