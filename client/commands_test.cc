// The command's pure and local parts: the live view, reports, exit codes, where things are found.
#include "client/commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "client/completion.h"
#include "client/plan_report.h"
#include "client/recipe_text.h"
#include "client/report.h"
#include "client/run_view.h"
#include "client/why_report.h"
#include "google/rpc/error_details.pb.h"

namespace nibble::client {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

v1::WatchJobResponse Snapshot(v1::JobState state, int64_t planned) {
  v1::WatchJobResponse update;
  auto* job = update.mutable_snapshot();
  job->set_name("jobs/bot");
  job->set_state(state);
  job->mutable_progress()->set_planned_steps(planned);
  return update;
}

v1::WatchJobResponse Step(int64_t step, double loss) {
  v1::WatchJobResponse update;
  auto* metric = update.mutable_metric();
  metric->set_step(step);
  metric->set_loss(loss);
  metric->set_learning_rate(2e-4);
  metric->set_tokens(1000);
  metric->set_step_time_us(500'000);
  return update;
}

TEST(RunViewTest, FrameShowsProgressSpeedAndLoss) {
  RunView view({false, true}, true);
  EXPECT_THAT(view.Frame(100, 0), IsEmpty());
  view.Apply(Snapshot(v1::RUNNING, 100));
  for (int i = 1; i <= 50; ++i) view.Apply(Step(i, 4.0 / i));
  const auto frame = view.Frame(100, 0);
  ASSERT_EQ(frame.size(), 2u);
  EXPECT_THAT(frame[0], HasSubstr("bot  RUNNING"));
  EXPECT_THAT(frame[0], HasSubstr("50 %  step 50/100  eta 25s"));
  EXPECT_THAT(frame[1], HasSubstr("loss 0.0800"));
  EXPECT_THAT(frame[1], HasSubstr("2.0k tok/s  lr 2.0e-04"));
  for (const auto& line : view.Frame(40, 0)) EXPECT_LE(DisplayWidth(line), 40);
  EXPECT_THAT(view.TakeLines(), IsEmpty()) << "a terminal shows steps in the frame alone";
}

TEST(RunViewTest, APipeGetsAStepNowAndThen) {
  RunView view({false, true}, false);
  view.Apply(Snapshot(v1::RUNNING, 100));
  for (int i = 1; i <= 100; ++i) view.Apply(Step(i, 1));
  const auto lines = view.TakeLines();
  EXPECT_EQ(lines.size(), 21u);
  EXPECT_THAT(lines[1], HasSubstr("step 5/100  loss 1.0000  lr 2.0e-04  2.0k tok/s  eta 47s"));
}

TEST(RunViewTest, APipeGetsTheLastStep) {
  RunView view({false, true}, false);
  view.Apply(Snapshot(v1::RUNNING, 222));
  for (int i = 1; i <= 222; ++i) view.Apply(Step(i, 1));
  EXPECT_THAT(view.TakeLines().back(), HasSubstr("step 222/222  loss 1.0000"));
}

TEST(RunViewTest, WhatIsWrongWithTheDataIsSaidOnce) {
  RunView view({false, true}, false);
  view.Apply(Snapshot(v1::RUNNING, 1));
  EXPECT_THAT(view.TakeLines(), IsEmpty());
  v1::Job job;
  job.set_name("jobs/bot");
  job.mutable_progress()->set_planned_steps(1);
  job.mutable_effective_spec()->mutable_optimizer()->set_warmup_ratio(0.1);
  job.set_dataset_report_json(
      R"({"rows":9,"rejected":[{"reason":"too_long","rows":3,"first_rows":[2]},7],"warnings":["1 row has an empty answer"]})");
  view.Refresh(job);
  view.Refresh(job);
  EXPECT_THAT(view.TakeLines(),
              ElementsAre("left out: 3 of 9 rows, too long", "warning: 1 row has an empty answer",
                          HasSubstr("warning: the only step is warm-up")));
  job.set_dataset_report_json("nonsense");
  job.mutable_effective_spec()->mutable_optimizer()->set_warmup_ratio(0);
  EXPECT_THAT(DataWarnings(job), IsEmpty());
}

TEST(RunViewTest, EvaluationsAndPlannedStepsAreHeard) {
  RunView view({false, true}, false);
  v1::WatchJobResponse planned;
  planned.mutable_event()->set_type("attempt.planned");
  (*planned.mutable_event()->mutable_fields())["planned_steps"] = "40";
  view.Apply(planned);
  auto step = Step(2, 1);
  step.mutable_metric()->set_eval_loss(0.5);
  view.Apply(step);
  v1::WatchJobResponse alone;
  alone.mutable_metric()->set_step(3);
  alone.mutable_metric()->set_eval_loss(0.25);
  view.Apply(alone);
  const auto lines = view.TakeLines();
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_THAT(lines[1], HasSubstr("step 2/40  loss 1.0000"));
  EXPECT_EQ(lines[2], "step 2  held-out loss 0.5000");
  EXPECT_EQ(lines[3], "step 3  held-out loss 0.2500");
}

TEST(RunViewTest, AResumedRunTakesItsRepeatedStepsBack) {
  RunView view({false, true}, true);
  view.Apply(Snapshot(v1::RUNNING, 10));
  for (int i = 1; i <= 6; ++i) view.Apply(Step(i, 6 - i));
  view.Apply(Step(5, 3));
  EXPECT_THAT(view.Frame(100, 0)[0], HasSubstr("step 5/10"));
  EXPECT_THAT(view.Frame(100, 0)[1], HasSubstr("loss 3.0000"));
}

TEST(RunViewTest, AWaitingJobSaysWhy) {
  RunView view({false, true}, false);
  auto update = Snapshot(v1::QUEUED, 0);
  update.mutable_snapshot()->set_state_reason("needs 5 GiB");
  view.Apply(update);
  view.Apply(update);
  EXPECT_THAT(view.TakeLines(), ElementsAre("waiting: needs 5 GiB"));
}

TEST(RunViewTest, AWaitWhoseFiguresMoveIsNotSaidAgain) {
  RunView view({false, true}, false);
  for (const char* reason :
       {"needs 5.00 GiB (5368709120 bytes); held by a-1; expected to start in about 9 s",
        "needs 5.01 GiB (5368709121 bytes); held by a-1; expected to start in about 8 s",
        "needs 5.01 GiB (5368709121 bytes); held by a-2; expected to start in about 7 s"}) {
    auto update = Snapshot(v1::QUEUED, 0);
    update.mutable_snapshot()->set_state_reason(reason);
    view.Apply(update);
  }
  EXPECT_THAT(view.TakeLines(), ElementsAre(AllOf(HasSubstr("a-1"), HasSubstr("about 9 s")),
                                            AllOf(HasSubstr("a-2"), HasSubstr("about 7 s"))));
}

TEST(RunViewTest, SummaryTellsWhatIsNext) {
  RunView view({false, true}, false);
  auto update = Snapshot(v1::SUCCEEDED, 10);
  update.mutable_snapshot()->set_adapter("adapters/bot");
  update.mutable_snapshot()->mutable_progress()->set_completed_steps(10);
  view.Apply(Step(1, 4));
  view.Apply(update);
  const std::string text = testing::PrintToString(view.Summary());
  EXPECT_THAT(text, HasSubstr("nibble download bot -o bot-adapter"));
  EXPECT_THAT(view.Frame(80, 0), IsEmpty());
  update.mutable_snapshot()->set_state(v1::FAILED);
  update.mutable_snapshot()->mutable_error()->set_message("the loss is nan");
  view.Apply(update);
  EXPECT_THAT(testing::PrintToString(view.Summary()), HasSubstr("the loss is nan"));
  update.mutable_snapshot()->mutable_progress()->set_completed_steps(1);
  view.Apply(update);
  EXPECT_THAT(view.Summary()[0], HasSubstr(": 1 step, "));
}

TEST(WhyReportTest, EachDeviceHasALineAndEachChangeToo) {
  v1::ExplainJobResponse why;
  why.set_name("jobs/bot");
  why.set_state(v1::QUEUED);
  why.set_state_reason("needs 5 GiB; waits for w1/cpu0");
  why.set_queue_position(2);
  why.set_project("research");
  why.set_project_share(0.125);
  why.set_devices_total(3);
  auto* device = why.add_devices();
  device->set_worker("workers/w1");
  device->set_device("cpu0");
  device->set_verdict(v1::DeviceExplanation::NO_BYTES);
  device->set_needed_bytes(int64_t{5} << 30);
  device->set_free_bytes(int64_t{3} << 30);
  device->set_capacity_bytes(int64_t{8} << 30);
  device->add_held_by("jobs/other");
  device->mutable_expected_start_time()->set_seconds(1'000);
  device->add_until("jobs/other");
  auto* change = why.add_counterfactuals();
  change->set_worker("workers/w1");
  change->set_device("cpu0");
  auto* field = change->mutable_change()->add_changes();
  field->set_field("training.micro_batch_size");
  field->set_value("2");
  change->mutable_change()->set_cost("the same batch, slower");
  const std::string text = WhyText(why, 0, {});
  EXPECT_THAT(text, HasSubstr("12.5 % of the fleet"));
  EXPECT_THAT(text, HasSubstr("w1/cpu0"));
  EXPECT_THAT(text, HasSubstr("2.0 GiB too few, held by other"));
  EXPECT_THAT(text, HasSubstr("when other ends"));
  EXPECT_THAT(text, HasSubstr("and 2 more (--devices)"));
  EXPECT_THAT(text, HasSubstr("  micro_batch_size=2 (the same batch, slower)"));
  EXPECT_THAT(text, HasSubstr("waits for w1/cpu0"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("SPEED")));
  device->set_speed_percent(59);
  EXPECT_THAT(WhyText(why, 0, {}), HasSubstr("59 %"));
  v1::ExplainJobResponse other;
  other.set_state(v1::RUNNING);
  EXPECT_THAT(WhyText(other, 0, {}), HasSubstr("nothing holds it up"));
  other.set_state(v1::FAILED);
  EXPECT_THAT(WhyText(other, 0, {}), HasSubstr("it has ended"));
}

TEST(OutputTest, ExitCodesAreStable) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kJobNotFound, "x").ToStatus()), 3);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kTokenInvalid, "x").ToStatus()), 4);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kSpecInvalid, "x").ToStatus()), 5);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kExceedsDeviceMemory, "x").ToStatus()), 5);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("x")), 6);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kShuttingDown, "x").ToStatus()), 6);
  EXPECT_EQ(ExitCodeOf(Error(Reason::kStoreUnavailable, "x").ToStatus()), 1) << "a server has answered";
  EXPECT_EQ(ExitCodeOf(Error(Reason::kJobNotPausable, "x").ToStatus()), 1);
  EXPECT_EQ(ExitCodeOf(v1::FAILED), 10);
  EXPECT_EQ(ExitCodeOf(v1::CANCELLED), 11);
  EXPECT_EQ(ExitCodeOf(v1::SUCCEEDED), 0);
}

TEST(OutputTest, ALostConnectionSaysWhatToLookAt) {
  EXPECT_THAT(ConnectionHint("SSL routines::certificate verify failed"), HasSubstr("has ended"));
  EXPECT_THAT(ConnectionHint("Peer name 10.0.0.1 is not in peer certificate"),
              HasSubstr("for other names"));
  EXPECT_THAT(ConnectionHint("UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"), HasSubstr("TLS"));
  EXPECT_THAT(ConnectionHint("Connection refused"), HasSubstr("nibble up"));
  const std::string grpc = "failed to connect to all addresses; last error: UNKNOWN: ";
  EXPECT_EQ(PlainConnectionError(
                grpc + "ipv4:127.0.0.1:7070: Failed to connect to remote host: Connection refused"),
            "cannot reach 127.0.0.1:7070: Connection refused");
  EXPECT_EQ(PlainConnectionError(grpc + "ipv6:%5B::1%5D:7: Ssl handshake failed: SSL: wrong version number"),
            "cannot reach [::1]:7: Ssl handshake failed: SSL: wrong version number");
  EXPECT_EQ(PlainConnectionError("DNS resolution failed for box0:7070: C-ares status is not ARES_SUCCESS "
                                 "qtype=A name=box0 is_balancer=0: Domain name not found"),
            "cannot find box0:7070: Domain name not found");
  EXPECT_EQ(PlainConnectionError("DNS resolution failed for "), "DNS resolution failed for ");
  EXPECT_EQ(PlainConnectionError("Socket closed"), "Socket closed");
}

// Of wrong rows the first are listed, and all are counted.
TEST(OutputTest, RowsThatAreNotListedAreCounted) {
  Error error(Reason::kDatasetSchemaMismatch,
              "32777 of 32777 rows are wrong; the first: rows[0] is not JSON (line 1)");
  error.With("bad_rows", "32777");
  for (int row = 0; row < 18; ++row) {
    error.Violation(absl::StrCat("rows[", row, "]"), absl::StrCat("is not JSON (line ", row + 1, ")"));
  }
  testing::internal::CaptureStderr();
  EXPECT_EQ(PrintError({}, error.ToStatus()), kExitInvalid);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("  rows[8]: is not JSON (line 9)\n  and 32768 more\n"));
  EXPECT_THAT(said, Not(HasSubstr("rows[9]")));
}

// A list also shows what a thing was called before it had a name.
TEST(OutputTest, WhoAsksByAnotherColumnIsToldWhichIsTheName) {
  const auto said = [](const char* description) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(PrintError({}, Error::Field(Reason::kNameInvalid, "name", description).ToStatus()),
              kExitInvalid);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(said("must be models/{id} with an id of [a-z]"),
              HasSubstr("`nibble model ls` lists them; the first column is the name.\n(NAME_INVALID)"));
  EXPECT_THAT(said("must be datasets/{id} with an id of [a-z]"), HasSubstr("`nibble dataset ls`"));
  EXPECT_THAT(said("must be jobs/{id} with an id of [a-z]"), Not(HasSubstr(" ls`")));
}

TEST(OutputTest, NamesJsonAndYaml) {
  EXPECT_EQ(FullName("jobs", "a"), "jobs/a");
  EXPECT_EQ(FullName("jobs", "jobs/a"), "jobs/a");
  EXPECT_EQ(ShortName("jobs/a"), "a");
  v1::Job job;
  job.set_name("jobs/a");
  job.set_display_name("1.5");
  job.mutable_progress()->set_completed_steps(3);
  EXPECT_THAT(ToJson(job), HasSubstr("\"completedSteps\": \"3\""));
  const std::string yaml = ToYaml(ToJson(job));
  EXPECT_THAT(yaml, HasSubstr("name: jobs/a"));
  EXPECT_THAT(yaml, HasSubstr("displayName: \"1.5\""));
}

TEST(ReportTest, AJobSaysWhyItIsWhereItIs) {
  v1::Job job;
  job.set_state(v1::RUNNING);
  EXPECT_EQ(ReasonText(job), "");
  job.set_state(v1::QUEUED);
  job.set_state_reason("waits for a worker: none is registered");
  EXPECT_EQ(ReasonText(job), "waits for a worker: none is registered");
  job.set_state(v1::FAILED);
  job.set_state_reason("the loss was no number");
  job.mutable_error()->set_message("the loss was no number");
  google::rpc::ErrorInfo info;
  info.set_reason("LOSS_NOT_FINITE");
  job.mutable_error()->add_details()->PackFrom(info);
  EXPECT_EQ(ReasonText(job), "LOSS_NOT_FINITE: the loss was no number");
}

TEST(ReportTest, TokensOfStepsThatWereRepeatedAreSaidToCountAgain) {
  v1::Job job;
  job.mutable_progress()->set_completed_steps(30);
  job.mutable_progress()->set_trained_tokens(35'000);
  const auto says = [&job] { return JobText(job, Style{}, ""); };
  job.mutable_progress()->set_completed_steps(0);
  job.mutable_progress()->set_planned_steps(30);
  EXPECT_THAT(says(), Not(HasSubstr("tokens  "))) << "none were processed yet";
  job.mutable_progress()->set_completed_steps(30);
  const auto add = [&job](const std::string& state) {
    job.add_attempts()->set_state(state);
    return job.mutable_attempts(job.attempts_size() - 1);
  };
  add("FAILED")->set_kind("CHECK");
  add("RELEASED");  // paused: behind a checkpoint
  add("LOST");
  EXPECT_THAT(says(), HasSubstr("35.0k\n"));
  add("ACTIVE")->set_continues_epoch(3);
  EXPECT_THAT(says(), Not(HasSubstr("repeated"))) << "it went on in the lost one's memory";
  job.mutable_attempts(3)->clear_continues_epoch();
  EXPECT_THAT(says(), HasSubstr("35.0k; steps that were repeated count again\n"));
}

TEST(ReportTest, PlanSaysWhatIsMissing) {
  v1::PlanJobResponse plan;
  auto* fit = plan.add_fits();
  fit->set_worker("workers/w1");
  fit->set_verdict(v1::DeviceFit::NEVER);
  fit->set_shortfall_bytes(int64_t{1} << 30);
  fit->mutable_plan()->set_total_bytes(int64_t{5} << 30);
  fit->set_device("cpu0");
  fit->mutable_plan()->set_recompute("full");
  fit->mutable_plan()->set_base_cache("off");
  fit->mutable_plan()->set_paged_optimizer(true);
  auto* suggestion = fit->add_suggestions();
  suggestion->set_total_bytes(int64_t{3} << 30);
  suggestion->set_saved_bytes(int64_t{2} << 30);
  suggestion->set_cost("the same batch, slower");
  for (const auto& [field, value] : {std::pair{"training.micro_batch_size", "1"},
                                     {"training.gradient_accumulation_steps", "8"},
                                     {"optimizer.type", "adamw8bit"}}) {
    auto* change = suggestion->add_changes();
    change->set_field(field);
    change->set_value(value);
  }
  const std::string text = PlanText(plan, "", 0, {false, true});
  EXPECT_THAT(text, HasSubstr("never, 1.0 GiB short"));
  EXPECT_THAT(text, HasSubstr("memory on w1/cpu0"));
  EXPECT_THAT(text, HasSubstr("5.0 GiB (5368709120 bytes)"));
  EXPECT_THAT(text, HasSubstr("what would make it fit w1/cpu0"));
  // In the table of devices, and with the memory.
  EXPECT_THAT(text, ContainsRegex("never, 1.0 GiB short .* recompute=full, optimizer paged\n"));
  EXPECT_THAT(text, HasSubstr("planned with          recompute=full, optimizer paged\n"));
  // As overrides, to be copied behind the recipe.
  EXPECT_THAT(
      text,
      HasSubstr("micro_batch_size=1 gradient_accumulation_steps=8 optimizer=adamw8bit  3.0 GiB"));
  EXPECT_THAT(text, HasSubstr("the same batch, slower"));
  // In short, for nibble validate.
  EXPECT_EQ(ShownFit(plan)->plan().total_bytes(), int64_t{5} << 30);
  fit->set_capacity_bytes(int64_t{4} << 30);
  auto* card = plan.add_fits();
  card->set_worker("card-24gb");
  card->set_device("gpu0");
  card->set_verdict(v1::DeviceFit::FITS_NOW);
  std::string fits = FitsText(plan, {false, true});
  EXPECT_THAT(fits, ContainsRegex("w1/cpu0 +never, 1.0 GiB short; 5.0 GiB of 4.0 GiB"));
  EXPECT_THAT(fits, Not(HasSubstr("card-24gb"))) << "there is a worker";
  plan.mutable_fits()->DeleteSubrange(0, 1);
  EXPECT_THAT(FitsText(plan, {false, true}), ContainsRegex("card-24gb/gpu0 +now"));
  const std::string data = DataReportText(
      R"({"rows":3,"usable_rows":2,"tokens":10,"trained_tokens":4,"length":{"max":9},
          "rejected":[{"reason":"too_long","rows":1,"first_rows":[2]}],
          "samples":[{"row":0,"tokens":5,"trained_tokens":2,
                      "pieces":[{"text":"ask","trained":false},{"text":"say","trained":true}]}]})",
      {false, true});
  EXPECT_THAT(data, HasSubstr("2 usable of 3"));
  EXPECT_THAT(data, HasSubstr("10, of which 4 are trained on (40 %)"));
  EXPECT_THAT(data, HasSubstr("1 row: too long (row 2)"));
  EXPECT_THAT(data, HasSubstr("ask>>say<<"));
  EXPECT_NE(DataReportText(R"({"samples":[3],"rejected":7,"length":[]})", {false, true}), "");
  EXPECT_EQ(DataReportText("nonsense", {false, true}), "");
}

// A device that takes no such job is no device that is too small, and says why.
TEST(ReportTest, PlanAndWhySayWhyADeviceCannotTakeAJob) {
  v1::PlanJobResponse plan;
  for (const char* card : {"card-24gb", "card-48gb"}) {
    auto* fit = plan.add_fits();
    fit->set_worker(card);
    fit->set_device("gpu0");
    fit->set_verdict(v1::DeviceFit::NEVER);
    fit->set_refusal("training.micro_batch_size times data.sequence_len is too much");
  }
  const std::string why = "micro_batch_size times sequence_len is too much";
  std::string text = PlanText(plan, "", 0, {false, true});
  EXPECT_THAT(text, ContainsRegex("card-24gb/gpu0 +never, cannot take it +- "));
  EXPECT_THAT(text, HasSubstr("why it cannot be taken by card-24gb/gpu0, card-48gb/gpu0\n  " + why + "\n"));
  EXPECT_THAT(text, Not(HasSubstr("nothing we know of")));
  EXPECT_THAT(FitsText(plan, {false, true}), ContainsRegex("card-24gb/gpu0 +never, cannot take it: " + why));
  auto* cpu = plan.add_fits();
  cpu->set_worker("workers/w1");
  cpu->set_device("cpu0");
  cpu->set_verdict(v1::DeviceFit::NEVER);
  cpu->set_shortfall_bytes(1);
  EXPECT_EQ(ShownFit(plan), cpu) << "what is only too small has a plan to be shown";

  v1::ExplainJobResponse job;
  job.set_state(v1::QUEUED);
  auto* device = job.add_devices();
  device->set_worker("workers/w2");
  device->set_device("cuda0");
  device->set_verdict(v1::DeviceExplanation::NO_PLAN);
  device->set_refusal(plan.fits(0).refusal());
  EXPECT_THAT(WhyText(job, 0, {}), HasSubstr("cannot take it: " + why));
}

// As transformers has it, the first step of a warm-up has rate 0: a job of one step would change nothing.
TEST(Report, AJobThatIsMostlyWarmUpIsSaid) {
  v1::JobSpec spec;
  spec.mutable_optimizer()->set_warmup_ratio(0.1);
  spec.mutable_data()->set_sample_packing(true);
  EXPECT_THAT(WarmUpText(spec, 1), HasSubstr("nothing is learned"));
  EXPECT_EQ(WarmUpText(spec, 2), "") << "one of two";
  EXPECT_EQ(WarmUpText(spec, 0), "") << "not known yet";
  spec.mutable_optimizer()->set_warmup_steps(30);
  EXPECT_THAT(WarmUpText(spec, 20), HasSubstr("all 20 steps are warm-up"));
  EXPECT_THAT(WarmUpText(spec, 59), HasSubstr("30 of 59 steps"));
  EXPECT_EQ(WarmUpText(spec, 60), "");
  spec.mutable_optimizer()->set_warmup_steps(0);
  EXPECT_EQ(WarmUpText(spec, 1), "");
  spec.mutable_optimizer()->set_warmup_steps(30);
  EXPECT_THAT(DataReportText(R"({"steps_packed":20,"steps_unpacked":60})", {false, true}, &spec),
              HasSubstr("all 20 steps are warm-up"));
  v1::PlanJobResponse plan;
  *plan.mutable_effective_spec() = spec;
  plan.set_planned_steps(20);
  EXPECT_THAT(PlanText(plan, "", 0, {false, true}), HasSubstr("all 20 steps are warm-up"));
  v1::Job job;
  *job.mutable_effective_spec() = spec;
  job.mutable_progress()->set_planned_steps(20);
  EXPECT_THAT(JobText(job, {false, true}), HasSubstr("all 20 steps are warm-up"));
}

TEST(SubmitTest, ModelFilesAreThoseOfAModel) {
  TempDir dir;
  EXPECT_EQ(StatusReason(ModelFiles(dir.path()).status()), Reason::kModelFileInvalid);
  for (const char* name :
       {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "pytorch_model.bin", "adapter_model.safetensors", ".gitattributes"}) {
    ASSERT_TRUE(WriteFileAtomic(dir.Join(name), "{}").ok());
  }
  const auto files = ModelFiles(dir.path());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(*files, ElementsAre("config.json", "model.safetensors", "tokenizer.json",
                                  "tokenizer_config.json"));
}

TEST(SubmitTest, AFileThatHasNotComeIsNamed) {
  TempDir dir;
  const auto refused = [&] {
    const auto files = ModelFiles(dir.path());
    EXPECT_EQ(StatusReason(files.status()), Reason::kModelFileInvalid);
    return std::string(files.status().message());
  };
  ASSERT_TRUE(WriteFileAtomic(dir.Join("config.json"), "{}").ok());
  ASSERT_TRUE(WriteFileAtomic(dir.Join("pytorch_model.bin"), "x").ok());
  EXPECT_THAT(refused(), HasSubstr("save what pytorch_model.bin has anew"));
  ASSERT_TRUE(WriteFileAtomic(dir.Join("tokenizer.model"), "x").ok());
  ASSERT_EQ(symlink("../../blobs/e3b0", dir.Join("model.safetensors").c_str()), 0);
  EXPECT_THAT(refused(), HasSubstr("of tokenizer.model transformers makes one"));
  ASSERT_TRUE(WriteFileAtomic(dir.Join("tokenizer.json"), "{}").ok());
  EXPECT_THAT(refused(), HasSubstr("model.safetensors is a link to ../../blobs/e3b0, which is not there"));
  ASSERT_EQ(unlink(dir.Join("model.safetensors").c_str()), 0);
  ASSERT_TRUE(WriteFileAtomic(dir.Join("model.safetensors"),
                              "version https://git-lfs.github.com/spec/v1\noid sha256:40\nsize 104\n").ok());
  EXPECT_THAT(refused(), HasSubstr("model.safetensors is a pointer of Git LFS"));
}

TEST(SubmitTest, TheHubCacheIsFound) {
  TempDir dir;
  setenv("HF_HUB_CACHE", dir.path().c_str(), 1);
  const std::string folder = dir.Join("models--org--tiny");
  ASSERT_TRUE(MakeDirs(folder + "/refs").ok());
  ASSERT_TRUE(MakeDirs(folder + "/snapshots/abc").ok());
  ASSERT_TRUE(WriteFileAtomic(folder + "/refs/main", "abc\n").ok());
  EXPECT_EQ(*FindInHubCache("org/tiny", ""), folder + "/snapshots/abc");
  EXPECT_EQ(*FindInHubCache("org/tiny", "abc"), folder + "/snapshots/abc");
  EXPECT_EQ(StatusReason(FindInHubCache("org/tiny", "def").status()), Reason::kBaseModelNotFound);
  EXPECT_THAT(std::string(FindInHubCache("org/tiny", "def").status().message()),
              HasSubstr("revision def is not"));
  EXPECT_FALSE(FindInHubCache("org/../tiny", "").ok());
  EXPECT_FALSE(FindInHubCache("tiny", "").ok());
  // A folder beside a recipe is nothing that can be downloaded.
  EXPECT_THAT(std::string(FindInHubCache("recipes/tiny", "").status().message()),
              Not(HasSubstr("download recipes/tiny")));
  unsetenv("HF_HUB_CACHE");
}

TEST(SubmitTest, Labels) {
  EXPECT_EQ(ParseLabels({"a=b", "c=d=e"})->at("c"), "d=e");
  EXPECT_FALSE(ParseLabels({"a"}).ok());
  EXPECT_FALSE(ParseLabels({"=a"}).ok());
}

TEST(ConnectionTest, TheServerIsFoundInOrder) {
  TempDir dir;
  unsetenv("NIBBLE_SERVER");
  Globals g;
  g.data_dir = dir.path();
  EXPECT_EQ(FindServer(g), "127.0.0.1:7070");
  ASSERT_TRUE(MakeDirs(dir.Join("server/run")).ok());
  ASSERT_TRUE(WriteFileAtomic(AddressFile(dir.path()),
                              R"({"host":"127.0.0.1","port":4711,"http_port":4712})")
                  .ok());
  EXPECT_EQ(FindServer(g), "127.0.0.1:4711");
  EXPECT_EQ(ReadAddress(dir.path()).http, "127.0.0.1:4712");
  ASSERT_TRUE(WriteFileAtomic(AddressFile(dir.path()),
                              R"({"listen":"unix:/run/n.sock","http_listen":"127.0.0.1:9","port":0,"http_port":9})")
                  .ok());
  EXPECT_EQ(FindServer(g), "unix:/run/n.sock");
  EXPECT_EQ(ReadAddress(dir.path()).http, "127.0.0.1:9");
  setenv("NIBBLE_SERVER", "there:1", 1);
  EXPECT_EQ(FindServer(g), "there:1");
  g.server = "here:2";
  EXPECT_EQ(FindServer(g), "here:2");
  unsetenv("NIBBLE_SERVER");
  ASSERT_TRUE(WriteFileAtomic(AddressFile(dir.path()), "nonsense").ok());
  g.server.clear();
  EXPECT_EQ(FindServer(g), "127.0.0.1:7070");
}

TEST(AdapterUsesTest, VllmIsToldOfLargeRanks) {
  EXPECT_THAT(AdapterUses("out", "mine", R"({"r": 16})"),
              HasSubstr("vllm serve BASE_DIR --enable-lora --lora-modules mine=out\n"));
  EXPECT_THAT(AdapterUses("out", "mine", R"({"r": 17})"),
              HasSubstr("--enable-lora --max-lora-rank 32 --lora"));
  EXPECT_THAT(AdapterUses("out", "mine", R"({"r": 300})"), HasSubstr("--max-lora-rank 320 "));
  EXPECT_THAT(AdapterUses("out", "mine", "nonsense"), Not(HasSubstr("max-lora-rank")));
}

TEST(RecipeTextTest, WhatIsLeftToTheServerStaysSoAndNothingIsDropped) {
  v1::JobSpec effective;
  effective.mutable_training()->set_base_cache("off");
  effective.mutable_training()->set_recompute("none");
  const auto text = [&](const std::string& given) {
    const auto recipe = ReadRecipe("base_model: /m\ndatasets: [/d.jsonl]\n" + given, "r.yaml", "/", {});
    return recipe.ok() ? RecipeText(*recipe, effective) : recipe.status().ToString();
  };
  EXPECT_THAT(text(""), AllOf(HasSubstr("\nbase_cache: auto\n"), HasSubstr("\nrecompute: auto\n"),
                              HasSubstr("  allow_numerics_change: false\n")));
  EXPECT_THAT(text("base_cache: auto"), HasSubstr("\nbase_cache: auto\n"));
  EXPECT_THAT(text("base_cache: off"), HasSubstr("\nbase_cache: off\n"));
  effective.mutable_training()->set_allow_numerics_change(true);
  EXPECT_THAT(text("nibble: {allow_numerics_change: true}"),
              HasSubstr("\nnibble:\n  priority: 0\n  allow_numerics_change: true\n"));
}

TEST(CompletionTest, EveryShellKnowsTheCommands) {
  const CommandShape root{"",
                          "",
                          {"--server"},
                          {{"run", "Submit it's job", {"--detach", "-d"}, {}},
                           {"dataset", "Data", {}, {{"push", "Upload", {"--name"}, {}}}}}};
  const std::string bash = CompletionScript(root, "bash");
  EXPECT_THAT(bash, HasSubstr("\"run\") words=\"--detach -d\""));
  EXPECT_THAT(bash, HasSubstr("\"dataset push\") words=\"--name\""));
  EXPECT_THAT(CompletionScript(root, "zsh"), HasSubstr("#compdef nibble"));
  EXPECT_THAT(CompletionScript(root, "fish"), HasSubstr("-a 'run' -d 'Submit it'\\''s job'"));
  EXPECT_EQ(CompletionScript(root, "tcsh"), "");
}

}  // namespace
}  // namespace nibble::client
