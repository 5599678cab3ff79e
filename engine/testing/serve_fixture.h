// A serving engine over a tiny model, and the worker's side of its socket.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <string>
#include <thread>

#include "base/file.h"
#include "engine/serve.h"
#include "engine/testing/tiny_directory.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::engine {

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
    // A lock is held until the process ends, so each engine in this one has its own.
    options_.lock_path = dir_.Join("lock" + std::to_string(started_++));
    options_.device.threads = threads_;
    options_.device.base.model_dir = dir_.Join("model");
    options_.device.base.cache_dir = cache_dir_.empty() ? dir_.path() : cache_dir_;
    engine_ = std::thread([this] { status_ = Serve(options_); });
  }
  void Stop() {
    if (!engine_.joinable()) return;
    Send({{"type", "shutdown"}});
    Join();
    EXPECT_TRUE(status_.ok()) << status_;
  }
  // Of an engine that ends by itself.
  void Join() {
    engine_.join();
    close(fds_[0]);
    close(fds_[1]);
    pending_.clear();
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
      // An end nobody waits for would otherwise hang the test.
      const bool failed = line["type"] == "failed" && (attempt.empty() || line["attempt"] == attempt);
      if (failed || (line["type"] == "finished" && line["attempt"] == attempt)) {
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
    return AttachSpec(attempt, spec);
  }
  json AttachSpec(const std::string& attempt, const spec::TrainSpec& spec) {
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
  int started_ = 0;
  std::string cache_dir_;  // "" = dir_
  int threads_ = 1;
  std::thread engine_;
  absl::Status status_;
  std::string pending_;
  std::deque<json> seen_;
};

}  // namespace nibble::engine
