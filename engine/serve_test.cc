// The worker's side of the line protocol against a serving engine.
#include "engine/serve.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>

#include "base/clock.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/testing/full_disk.h"
#include "engine/testing/serve_fixture.h"
#include "engine/testing/tiny_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulated.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

TEST_F(ServeTest, OneJobFromAttachToAdapter) {
  const json hello = Until("hello");
  EXPECT_EQ(hello["version"], 1);
  EXPECT_GT(hello["profile"]["fixed_bytes"], 0);
  Send(Attach("job/1", 12));
  const json base = Until("base");
  EXPECT_EQ(base["cached"], false);
  EXPECT_EQ(base["digest"].get<std::string>().size(), 64u);
  const json plan = Until("plan", "job/1");
  EXPECT_EQ(plan["planned_steps"], 12);
  EXPECT_EQ(plan["plan"]["base_bytes"], base["bytes"]);
  EXPECT_EQ(plan["numerics_id"], hello["numerics_id"]);
  EXPECT_EQ(plan["report"]["train_rows"], 60);
  const json finished = Until("finished", "job/1");
  EXPECT_EQ(CountSeen("step", "job/1"), 12);
  EXPECT_EQ(CountSeen("eval", "job/1"), 4);  // steps 0, 5, 10 and the end
  EXPECT_EQ(finished["step"], 12);
  EXPECT_THAT(finished["files"].dump(), ::testing::HasSubstr("adapter_model.safetensors"));
  for (const json& file : finished["files"]) {
    const std::string path =
        JoinPath(finished["dir"].get<std::string>(), file["name"].get<std::string>());
    EXPECT_EQ(*FileSizeBytes(path), file["size"].get<int64_t>());
  }
  for (const json& line : seen_) {
    if (line["type"] != "step") continue;
    EXPECT_GT(line["used_bytes"].get<int64_t>(), base["bytes"].get<int64_t>());
  }
}

TEST_F(ServeTest, NeighboursPausesAndDetachmentsChangeNoByte) {
  Send(Attach("alone/1", 12));
  Until("finished", "alone/1");
  // Two at once; one of them is paused in between.
  Send(Attach("a/1", 12));
  Send(Attach("b/1", 12));
  Until("step", "a/1");
  Send({{"type", "pause"}, {"attempt", "a/1"}});
  Until("paused", "a/1");
  Until("finished", "b/1");
  Send({{"type", "resume"}, {"attempt", "a/1"}});
  Until("finished", "a/1");
  // Detached with a checkpoint, gone on in another attempt.
  json half = Attach("c/1", 12);
  Send(half);
  Until("step", "c/1");
  Send({{"type", "detach"}, {"attempt", "c/1"}, {"checkpoint", true}});
  const json checkpoint = Until("checkpoint", "c/1");
  Until("detached", "c/1");
  json rest = Attach("c/2", 12);
  rest["resume"] = checkpoint["dir"];
  Send(rest);
  Until("plan", "c/2");
  Send({{"type", "detach"}, {"attempt", "c/2"}, {"checkpoint", true}});
  Until("detached", "c/2");
  rest["attempt"] = "c/3";
  rest["dir"] = dir_.Join("c-3");
  if (CountSeen("step", "c/2") == 0) {
    EXPECT_EQ(CountSeen("checkpoint", "c/2"), 0);
  }
  Send(rest);
  Until("finished", "c/3");
  EXPECT_EQ(*Sha256HexOfFile(JoinPath(checkpoint["dir"].get<std::string>(), "manifest.json")),
            checkpoint["manifest_sha256"].get<std::string>());
  const std::string weights = Weights("alone-1");
  EXPECT_TRUE(Weights("a-1") == weights);
  EXPECT_TRUE(Weights("b-1") == weights);
  EXPECT_TRUE(Weights("c-3") == weights);
}

// Jobs that have nothing in common but their base.
struct MixedJob {
  std::string name;
  spec::TrainSpec spec;
  int64_t priority = 0;
};
// What jobs are made of that differ from `common` in a few things each.
auto MakerOf(const spec::TrainSpec& common) {
  return [common](const char* name, int64_t priority, auto change) {
    MixedJob mixed{name, common, priority};
    change(mixed.spec);
    return mixed;
  };
}
// Steps that are seen to learn, one micro-batch each; nothing is saved but when it is asked for.
spec::TrainSpec Quick(spec::QuantKind quant, int32_t rank, int32_t length) {
  spec::TrainSpec spec;
  spec.quant = quant;
  spec.lora_r = rank;
  spec.sequence_len = length;
  spec.gradient_accumulation_steps = 1;
  spec.learning_rate = 5e-3;
  spec.save_interval_seconds = 0;
  return spec;
}

std::vector<MixedJob> MixedJobs(spec::QuantKind quant) {
  using spec::Module, spec::OptimizerKind, spec::Recompute;
  spec::TrainSpec common = Quick(quant, 4, 64);
  common.max_steps = 8;
  common.eval_steps = 3;
  const auto job = MakerOf(common);
  return {
      job("plain", 0, [](auto&) {}),
      job("large", 10, [](auto& s) { s.lora_r = 32, s.micro_batch_size = 4, s.max_steps = 5; }),
      job("narrow", -10, [](auto& s) {
        s.lora_r = 1, s.target_modules = {Module::kQ, Module::kV}, s.lora_dropout = 0;
      }),
      job("eight-bit", 0, [](auto& s) { s.optimizer = OptimizerKind::kAdamW8bit, s.lora_r = 8; }),
      job("short", 5, [](auto& s) {
        s.sequence_len = 24, s.micro_batch_size = 3, s.gradient_accumulation_steps = 3;
      }),
      job("long", 0, [](auto& s) { s.sequence_len = 128, s.recompute = Recompute::kNone; }),
      job("unpacked", 20, [](auto& s) {
        s.sample_packing = false, s.micro_batch_size = 5, s.use_rslora = true, s.seed = 7;
      }),
      job("down-only", 0, [](auto& s) {
        s.target_modules = {Module::kDown}, s.optimizer = OptimizerKind::kAdamW8bit;
        s.recompute = Recompute::kKeepGemmOutputs, s.lr_schedule = spec::LrSchedule::kConstant;
      }),
  };
}

// Time passes when it is asked for: how turns are charged hangs on what is done in them, not on how busy the
// machine is.
class TickingClock : public Clock {
 public:
  int64_t NowUnixUs() const override { return NowMonotonicUs(); }
  int64_t NowMonotonicUs() const override { return now_us_ += 1'000; }

 private:
  mutable std::atomic<int64_t> now_us_ = 0;
};

class MixedJobsTest : public ServeTest,
                      public ::testing::WithParamInterface<std::pair<spec::QuantKind, int>> {
 protected:
  void SetUp() override {
    options_.device.base.quant = GetParam().first;
    threads_ = GetParam().second;
    options_.clock = &clock_;
    // A turn that waits goes on when a command comes. From its fourth turn on, who is to leave waits in each:
    // it cannot end before the command to leave, however slowly that comes.
    options_.waits_in_turn = [this](const std::vector<std::string>& attempts, int64_t steps_done) {
      const bool leaves = std::count(attempts.begin(), attempts.end(), leaves_) > 0;
      if (leaves) turns_of_who_leaves_.insert({attempts, steps_done});
      return all_wait_ || (leaves && turns_of_who_leaves_.size() > 3);
    };
    ServeTest::SetUp();
  }
  void Restart() {
    Stop();
    pending_.clear();
    seen_.clear();
    Start();
  }
  json AttachMixed(const MixedJob& job, const std::string& attempt) {
    json line = AttachSpec(attempt, job.spec);
    line["priority"] = job.priority;
    return line;
  }
  // Their data is read one after the other; none of them begins before the last has joined.
  void AttachTogether(const std::vector<json>& lines) {
    const auto tell = [&](const char* type) {
      for (const json& line : lines) Send({{"type", type}, {"attempt", line["attempt"]}});
    };
    for (const json& line : lines) Send(line);
    tell("pause");
    for (const json& line : lines) {
      if (CountSeen("plan", line["attempt"]) == 0) Until("plan", line["attempt"]);
    }
    tell("resume");
  }
  // So many attempts, those that have been seen included.
  void UntilFinished(size_t attempts) {
    size_t finished = 0;
    for (const json& line : seen_) finished += line["type"] == "finished";
    while (finished < attempts) {
      const json line = Next();
      ASSERT_FALSE(line.empty());
      seen_.push_back(line);
      ASSERT_NE(line["type"], "failed") << line.dump();
      ASSERT_NE(line["type"], "dropped") << line.dump();
      finished += line["type"] == "finished";
    }
  }
  // Steps that were done in a turn of several.
  int Fused() const {
    int count = 0;
    for (const json& line : seen_) count += line["type"] == "step" && line["jobs"] > 1;
    return count;
  }
  // Everything of a step or an evaluation but its times, over all attempts of a job.
  std::map<std::string, std::string> Series(const std::string& job) const {
    std::map<std::string, std::string> series;
    for (const json& line : seen_) {
      if (line["type"] != "step" && line["type"] != "eval") continue;
      if (!line["attempt"].get<std::string>().starts_with(job + "/")) continue;
      json numbers;
      for (const char* key : {"loss", "grad_norm", "learning_rate", "tokens", "target_tokens"}) {
        if (line.contains(key)) numbers[key] = line[key];
      }
      series[line["type"].get<std::string>() + line["step"].dump()] = numbers.dump();
    }
    return series;
  }

  const TickingClock clock_;
  std::string leaves_;                  // set before its attempt is sent
  std::atomic<bool> all_wait_ = false;  // in each of their turns
  std::set<std::pair<std::vector<std::string>, int64_t>> turns_of_who_leaves_;  // the engine's thread
};

TEST_P(MixedJobsTest, BytesAndSeriesAreThoseOfSoloRuns) {
  const std::vector<MixedJob> jobs = MixedJobs(GetParam().first);
  std::map<std::string, std::map<std::string, std::string>> solo;
  for (const MixedJob& job : jobs) {
    Restart();  // an engine of its own
    Send(AttachMixed(job, job.name + "/1"));
    Until("finished", job.name + "/1");
    solo[job.name] = Series(job.name);
    EXPECT_GE(solo[job.name].size(), static_cast<size_t>(job.spec.max_steps) + 3);
  }
  Restart();
  const auto attempt = [](const MixedJob& job) { return job.name + "/2"; };
  // Half of them, then the rest while those run; one leaves and comes back.
  std::vector<json> half;
  for (size_t i = 0; i < 4; ++i) half.push_back(AttachMixed(jobs[i], attempt(jobs[i])));
  leaves_ = attempt(jobs[2]);
  AttachTogether(half);
  Until("step", leaves_);
  Send({{"type", "priority"}, {"attempt", attempt(jobs[3])}, {"priority", 7}});
  for (size_t i = 4; i < jobs.size(); ++i) Send(AttachMixed(jobs[i], attempt(jobs[i])));
  Send({{"type", "detach"}, {"attempt", leaves_}, {"checkpoint", true}});
  Until("detached", leaves_);
  json back = AttachMixed(jobs[2], jobs[2].name + "/3");
  for (const json& line : seen_) {
    if (line["type"] == "checkpoint" && line["attempt"] == leaves_) back["resume"] = line["dir"];
  }
  EXPECT_NE(back["resume"], "");
  Send(back);
  UntilFinished(jobs.size());
  std::string last;
  int switches = 0;
  for (const json& line : seen_) {
    if (line["type"] != "step") continue;
    switches += line["attempt"] != last;
    last = line["attempt"];
  }
  EXPECT_GT(switches, 20);  // they did take turns
  for (const MixedJob& job : jobs) {
    const bool returned = job.name == jobs[2].name;
    EXPECT_TRUE(Weights(job.name + (returned ? "-3" : "-2")) == Weights(job.name + "-1")) << job.name;
    EXPECT_EQ(Series(job.name), solo[job.name]) << job.name;
  }
}

// Short micro-batches beside one long one, whose step region is where products of several fit. What they
// target, recompute and accumulate differs, so that not every product is every job's.
std::vector<MixedJob> ShortJobs(spec::QuantKind quant) {
  using spec::Module, spec::OptimizerKind, spec::Recompute;
  spec::TrainSpec common = Quick(quant, 32, 48);
  common.micro_batch_size = 1;
  common.max_steps = 12;
  common.eval_steps = 5;
  common.recompute = Recompute::kFull;
  const auto job = MakerOf(common);
  return {
      job("long", 0, [](auto& s) {
        s.sequence_len = 128, s.micro_batch_size = 4, s.recompute = Recompute::kNone;
      }),
      job("plain", 0, [](auto&) {}),
      job("keeps-a-block", 0, [](auto& s) { s.keep_blocks = 1, s.seed = 5; }),
      job("attention-only", 0, [](auto& s) {
        s.lora_r = 64, s.target_modules = {Module::kQ, Module::kV}, s.lora_dropout = 0.2, s.seed = 3;
      }),
      job("eight-bit", 10, [](auto& s) { s.optimizer = OptimizerKind::kAdamW8bit, s.lora_r = 100; }),
      job("accumulates", 0, [](auto& s) {
        s.sequence_len = 24, s.gradient_accumulation_steps = 3, s.learning_rate = 1e-3;
      }),
      job("keeps-all", 0, [](auto& s) { s.lora_r = 160, s.recompute = Recompute::kNone; }),
      job("keeps-outputs", -10, [](auto& s) {
        s.lora_r = 100, s.recompute = Recompute::kKeepGemmOutputs, s.lora_dropout = 0;
        s.target_modules = {Module::kGate, Module::kDown};
      }),
      job("unpacked", 0, [](auto& s) {
        s.sample_packing = false, s.micro_batch_size = 2, s.use_rslora = true;
      }),
  };
}

TEST_P(MixedJobsTest, FusedTurnsChangeNoByte) {
  const std::vector<MixedJob> jobs = ShortJobs(GetParam().first);
  std::map<std::string, std::map<std::string, std::string>> solo;
  for (const MixedJob& job : jobs) {
    Send(AttachMixed(job, job.name + "/1"));
    Until("finished", job.name + "/1");
    solo[job.name] = Series(job.name);
  }
  EXPECT_EQ(Fused(), 0);
  seen_.clear();
  // One is cancelled, one is paused, one leaves and comes back: nobody else notices.
  MixedJob cancelled{"cancelled", jobs[1].spec, 0};
  cancelled.spec.max_steps = 500;
  const auto attempt = [](const MixedJob& job) { return job.name + "/2"; };
  std::vector<json> all;
  for (const MixedJob& job : jobs) all.push_back(AttachMixed(job, attempt(job)));
  all.push_back(AttachMixed(cancelled, attempt(cancelled)));
  leaves_ = attempt(jobs[4]);
  all_wait_ = true;  // so no more turns than commands: none of those below comes too late
  AttachTogether(all);
  Send({{"type", "pause"}, {"attempt", attempt(jobs[1])}});
  Until("paused", attempt(jobs[1]));
  Send({{"type", "detach"}, {"attempt", attempt(cancelled)}, {"checkpoint", false}});
  Until("detached", attempt(cancelled));
  all_wait_ = false;
  Send({{"type", "resume"}, {"attempt", attempt(jobs[0])}});  // changes nothing, but who waits goes on
  // Before its first step there is nothing to save.
  if (CountSeen("step", leaves_) == 0) Until("step", leaves_);
  Send({{"type", "detach"}, {"attempt", leaves_}, {"checkpoint", true}});
  const json checkpoint = Until("checkpoint", leaves_);
  json back = AttachMixed(jobs[4], jobs[4].name + "/3");
  back["resume"] = checkpoint["dir"];
  Send(back);
  Send({{"type", "resume"}, {"attempt", attempt(jobs[1])}});
  UntilFinished(jobs.size());
  // How many depends on when commands come.
  EXPECT_GT(Fused(), 0) << "they did step together";
  for (const MixedJob& job : jobs) {
    const bool returned = job.name == jobs[4].name;
    EXPECT_TRUE(Weights(job.name + (returned ? "-3" : "-2")) == Weights(job.name + "-1")) << job.name;
    EXPECT_EQ(Series(job.name), solo[job.name]) << job.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, MixedJobsTest,
                         ::testing::Values(std::pair(spec::QuantKind::kNF4, 1),
                                           std::pair(spec::QuantKind::kNF4, 2),
                                           std::pair(spec::QuantKind::kBF16, 1)),
                         [](const auto& info) {
                           return std::string(info.param.first == spec::QuantKind::kNF4 ? "nf4" : "bf16") +
                                  std::to_string(info.param.second);
                         });

TEST_F(ServeTest, RefusalsNameTheirReasonAndHarmNobody) {
  Send(Attach("good/1", 300));
  Until("step", "good/1");
  const auto refused = [&](const json& attach) {
    Send(attach);
    const std::string attempt = attach["attempt"];
    while (true) {
      const json line = Next();
      if (line.empty()) return line;
      if (line["type"] == "failed" && line["attempt"] == attempt) return line;
    }
  };
  json tight = Attach("tight/1", 5);
  tight["planned"]["step_bytes"] = 1000;
  EXPECT_EQ(refused(tight)["reason"], "PLAN_EXCEEDED");
  json wrong = Attach("wrong/1", 5);
  wrong["spec"]["lora_r"] = 0;
  const json failed = refused(wrong);
  EXPECT_EQ(failed["reason"], "SPEC_INVALID");
  EXPECT_EQ(failed["infrastructure"], false);
  json missing = Attach("missing/1", 5);
  missing["dataset"] = dir_.Join("nothing.jsonl");
  EXPECT_NE(refused(missing)["reason"], "");
  json stranger = Attach("stranger/1", 5);
  stranger["resume"] = dir_.Join("nothing");
  EXPECT_EQ(refused(stranger)["reason"], "CHECKPOINT_INVALID");
  Send(json("garbage"));
  Send({{"type", "detach"}, {"attempt", "good/1"}, {"checkpoint", false}});
  Until("detached", "good/1");
}

TEST_F(ServeTest, AFullDiskHoldsUpFilesNotSteps) {
  Stop();
  pending_.clear();
  options_.disk_retry_us = 20'000;
  Start();
  Send(Attach("undisturbed/1", 12));
  Until("finished", "undisturbed/1");
  json attach = Attach("job/1", 12);
  attach["spec"]["save_steps"] = 3;
  Send(attach);
  Send({{"type", "pause"}, {"attempt", "job/1"}});
  Until("plan", "job/1");
  {
    const FullDisk full(64);
    Send({{"type", "resume"}, {"attempt", "job/1"}});
    const json no_room = Until("no_room", "job/1");
    EXPECT_THAT(no_room["message"].get<std::string>(), ::testing::HasSubstr(dir_.Join("job-1")));
    while (true) {
      const json phase = Until("phase", "job/1");
      ASSERT_FALSE(phase.empty());
      if (phase["phase"] == "PAUSED_DISK") break;
    }
    EXPECT_EQ(CountSeen("checkpoint", "job/1"), 0);
  }
  Until("finished", "job/1");
  EXPECT_EQ(CountSeen("step", "job/1"), 12);
  EXPECT_EQ(Weights("job-1"), Weights("undisturbed-1"));
}

TEST_F(ServeTest, NobodyIsLetGoWithoutTheCheckpointAskedFor) {
  Stop();
  pending_.clear();
  options_.disk_retry_us = 3'600'000'000;
  Start();
  Send(Attach("job/1", 1'000'000));
  Until("step", "job/1");
  const FullDisk full(64);
  Send({{"type", "detach"}, {"attempt", "job/1"}, {"checkpoint", true}});
  json line = Next();
  while (line["type"] != "failed" && line["type"] != "detached") line = Next();
  EXPECT_EQ(line["type"], "failed");
  EXPECT_EQ(line["reason"], "STORAGE_FULL");
  EXPECT_EQ(line["infrastructure"], true);
}

TEST_F(ServeTest, TheDeviceIsLocked) {
  Until("hello");
  ServeOptions second = options_;
  second.lock_wait_ms = 50;
  EXPECT_EQ(StatusReason(Serve(second)), Reason::kResourceInUse);
}

// EMULATED. A device that fails in a turn fails the attempt whose turn it was, with the reason, and ends the
// engine; nobody is given the device again before it opens and answers.
TEST_F(ServeTest, ADeviceThatFailsIsOpenedAnewBeforeItGetsWork) {
  Stop();
  options_.device.device = "cuda-emulated";
  kernels::EmulatedCudaFailAfter(250);
  Start();
  Until("hello");
  Send(Attach("a/1", 1'000));
  json failed = Next();
  while (failed["type"] != "failed") failed = Next();
  Join();
  EXPECT_EQ(failed["attempt"], "a/1");
  EXPECT_EQ(failed["reason"], "DEVICE_FAULT");
  EXPECT_THAT(failed["message"].get<std::string>(), ::testing::HasSubstr("the device failed"));
  // As long as it does not answer, no engine comes up on it.
  Start();
  Join();
  EXPECT_EQ(StatusReason(status_), Reason::kDeviceFault) << status_;
  EXPECT_THAT(std::string(status_.message()), ::testing::HasSubstr("does not answer"));
  // When it does, work goes on.
  kernels::EmulatedCudaFailAfter(-1);
  Start();
  Until("hello");
  Send(Attach("a/2", 1));
  EXPECT_EQ(Until("finished", "a/2")["step"], 1);
}

}  // namespace
}  // namespace nibble::engine
