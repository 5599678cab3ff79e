// The worker's side of the line protocol against a serving engine.
#include "engine/serve.h"

#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <thread>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/testing/tiny_directory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {
namespace {

using nlohmann::json;

class ServeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyDirectory(dir_.Join("model"), 3);
    testing::WriteTinyDataset(dir_.Join("train.jsonl"), 60, 4);
    testing::WriteTinyDataset(dir_.Join("eval.jsonl"), 12, 5);
    Start();
  }
  void TearDown() override { Stop(); }

  void Start() {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds_), 0);
    options_.fd = fds_[1];
    options_.lock_path = dir_.Join("lock");
    options_.device.threads = 1;
    options_.device.base.model_dir = dir_.Join("model");
    options_.device.base.cache_dir = dir_.path();
    engine_ = std::thread([this] { status_ = Serve(options_); });
  }
  void Stop() {
    if (!engine_.joinable()) return;
    Send({{"type", "shutdown"}});
    engine_.join();
    EXPECT_TRUE(status_.ok()) << status_;
    close(fds_[0]);
    close(fds_[1]);
  }

  void Send(const json& object) {
    const std::string line = object.dump() + "\n";
    ASSERT_EQ(write(fds_[0], line.data(), line.size()), static_cast<ssize_t>(line.size()));
  }
  json Next() {
    while (true) {
      const size_t end = pending_.find('\n');
      if (end != std::string::npos) {
        const std::string line = pending_.substr(0, end);
        pending_.erase(0, end + 1);
        EXPECT_LT(line.size(), size_t{64} << 10);
        return json::parse(line);
      }
      char buffer[65536];
      const ssize_t size = read(fds_[0], buffer, sizeof buffer);
      if (size <= 0) return json::object();
      pending_.append(buffer, static_cast<size_t>(size));
    }
  }
  // Lines up to the first of this type for this attempt; all of them are kept in `seen_`.
  json Until(const std::string& type, const std::string& attempt = "") {
    while (true) {
      json line = Next();
      if (line.empty()) return line;
      seen_.push_back(line);
      if (line["type"] == type && (attempt.empty() || line.value("attempt", "") == attempt))
        return line;
      // A failure nobody waits for would otherwise hang the test.
      if (line["type"] == "failed" && line["attempt"] == attempt) {
        ADD_FAILURE() << line.dump();
        return json::object();
      }
    }
  }
  int CountSeen(const std::string& type, const std::string& attempt) const {
    int count = 0;
    for (const json& line : seen_)
      count += line["type"] == type && line.value("attempt", "") == attempt;
    return count;
  }

  json Attach(const std::string& attempt, int64_t max_steps) {
    spec::TrainSpec spec;
    spec.lora_r = 4;
    spec.sequence_len = 64;
    spec.micro_batch_size = 2;
    spec.gradient_accumulation_steps = 1;
    spec.max_steps = max_steps;
    spec.eval_steps = 5;
    spec.save_interval_seconds = 0;
    std::string name = attempt;
    name.replace(name.find('/'), 1, "-");
    return {{"type", "attach"},
            {"attempt", attempt},
            {"dir", dir_.Join(name)},
            {"spec", json::parse(spec::TrainSpecToJson(spec))},
            {"dataset", dir_.Join("train.jsonl")},
            {"eval_dataset", dir_.Join("eval.jsonl")},
            {"resume", ""},
            {"numerics_id", ""},
            {"base_name", "tiny"},
            {"display_name", name},
            {"planned",
             {{"base_bytes", 1 << 30}, {"persistent_bytes", 1 << 30}, {"step_bytes", 1 << 30}}}};
  }
  std::string Weights(const std::string& name) {
    return *ReadFile(dir_.Join(name + "/adapter/adapter_model.safetensors"));
  }

  TempDir dir_;
  ServeOptions options_;
  int fds_[2] = {-1, -1};
  std::thread engine_;
  absl::Status status_;
  std::string pending_;
  std::deque<json> seen_;
};

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

TEST_F(ServeTest, TheDeviceIsLocked) {
  Until("hello");
  ServeOptions second = options_;
  second.lock_wait_ms = 50;
  EXPECT_EQ(StatusReason(Serve(second)), Reason::kResourceInUse);
}

}  // namespace
}  // namespace nibble::engine
