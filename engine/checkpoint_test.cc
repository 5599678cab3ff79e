#include "engine/checkpoint.h"

#include <atomic>
#include <cmath>
#include <fstream>
#include <limits>
#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "engine/testing/full_disk.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

using ::testing::ElementsAre;

struct State {
  std::vector<float> master, moment1, moment2;
  explicit State(size_t n, float start = 0) : master(n), moment1(n), moment2(n) {
    for (size_t i = 0; i < n; ++i) {
      master[i] = start + 0.5f * static_cast<float>(i);
      moment1[i] = -master[i];
      moment2[i] = master[i] * 1e-3f;
    }
  }
  CheckpointArrays arrays() {
    const auto bytes = static_cast<int64_t>(4 * master.size());
    return {{{"adapters", master.data(), bytes},
             {"first moments", moment1.data(), bytes},
             {"second moments", moment2.data(), bytes}},
            static_cast<int64_t>(master.size())};
  }
};

CheckpointHead Head(int64_t step) {
  CheckpointHead head;
  head.step = step;
  head.updates = step - 1;
  head.skipped_in_a_row = 1;
  head.attempt = "job-1/2";
  head.spec_digest = "s";
  head.base_digest = "b";
  head.data_digest = "d";
  head.numerics_id = "n";
  head.seed = std::numeric_limits<uint64_t>::max();
  head.loss = 1.0 / 3;
  return head;
}

std::vector<MetricRow> History() {
  MetricRow row{.step = 1,
                .epoch = 0.1,
                .loss = 2.0 / 3,
                .grad_norm = 0.1,
                .learning_rate = 1e-300,
                .tokens = 5,
                .target_tokens = 4,
                .step_time_us = 77};
  MetricRow bad = row;
  bad.step = 2;
  bad.loss = std::numeric_limits<double>::quiet_NaN();
  bad.grad_norm = std::numeric_limits<double>::infinity();
  MetricRow eval = row;
  eval.is_eval = true;
  return {row, bad, eval};
}

TEST(Checkpoint, ComesBackBitForBit) {
  TempDir dir;
  State state(1000);
  const auto saved = SaveCheckpoint(dir.path(), Head(7), state.arrays(), History());
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_EQ(saved->directory, dir.Join("step-7"));
  EXPECT_EQ(NewestCheckpoint(dir.path()), saved->directory);
  EXPECT_FALSE(FileExists(dir.Join("step-7.tmp")));
  State other(1000, 9);
  const auto loaded = LoadCheckpoint(saved->directory, other.arrays());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(other.master, state.master);
  EXPECT_EQ(other.moment1, state.moment1);
  EXPECT_EQ(other.moment2, state.moment2);
  EXPECT_EQ(loaded->head.step, 7);
  EXPECT_EQ(loaded->head.updates, 6);
  EXPECT_EQ(loaded->head.skipped_in_a_row, 1);
  EXPECT_EQ(loaded->head.seed, Head(7).seed);
  EXPECT_EQ(loaded->head.loss, 1.0 / 3);
  ASSERT_EQ(loaded->history.size(), 3u);
  EXPECT_EQ(loaded->history[0].loss, 2.0 / 3);
  EXPECT_EQ(loaded->history[0].learning_rate, 1e-300);
  EXPECT_TRUE(std::isnan(loaded->history[1].loss));
  EXPECT_TRUE(std::isinf(loaded->history[1].grad_norm));
  EXPECT_TRUE(loaded->history[2].is_eval);
}

TEST(Checkpoint, RefusesWhatIsNotFinite) {
  TempDir dir;
  State state(10);
  state.moment2[9] = std::nanf("");
  const auto saved = SaveCheckpoint(dir.path(), Head(1), state.arrays(), {});
  EXPECT_EQ(StatusReason(saved.status()), Reason::kLossNotFinite);
  EXPECT_EQ(NewestCheckpoint(dir.path()), "");
}

TEST(Checkpoint, AFullDiskLeavesTheOlderOnes) {
  TempDir dir;
  State state(50'000);
  const std::string older = SaveCheckpoint(dir.path(), Head(1), state.arrays(), History())->directory;
  // Too little for the state, and too little for the manifest behind it.
  for (const int64_t bytes : {100'000, 300}) {
    const FullDisk full(bytes);
    const auto saved = SaveCheckpoint(dir.path(), Head(2), state.arrays(), History());
    EXPECT_EQ(StatusReason(saved.status()), Reason::kStorageFull) << saved.status();
    EXPECT_THAT(*ListDir(dir.path()), ElementsAre("step-1"));
    // The same step again: what stood there stays until the new one is whole.
    EXPECT_FALSE(SaveCheckpoint(dir.path(), Head(1), state.arrays(), History()).ok());
  }
  State other(50'000, 9);
  ASSERT_TRUE(LoadCheckpoint(older, other.arrays()).ok());
  EXPECT_EQ(other.master, state.master);
  EXPECT_TRUE(SaveCheckpoint(dir.path(), Head(2), state.arrays(), History()).ok());
}

TEST(Checkpoint, DamageIsFound) {
  TempDir dir;
  State state(100);
  const std::string path =
      SaveCheckpoint(dir.path(), Head(3), state.arrays(), History())->directory;
  const std::string manifest = *ReadFile(JoinPath(path, "manifest.json"));
  const auto load = [&] { return StatusReason(LoadCheckpoint(path, state.arrays()).status()); };
  const std::string bytes = *ReadFile(JoinPath(path, "state.bin"));

  std::string flipped = bytes;
  flipped[700] ^= 1;
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "state.bin"), flipped).ok());
  EXPECT_EQ(load(), Reason::kCheckpointInvalid);
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "state.bin"), bytes.substr(0, 500)).ok());
  EXPECT_EQ(load(), Reason::kCheckpointInvalid);
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "state.bin"), bytes).ok());
  EXPECT_EQ(load(), Reason::kUnspecified);

  for (const char* text : {"", "[]", "{}", R"({"format":"nibble-checkpoint","version":2})"}) {
    ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "manifest.json"), text).ok());
    EXPECT_EQ(load(), Reason::kCheckpointInvalid) << text;
  }
  std::string escape = manifest;
  escape.replace(escape.find("state.bin"), 9, "../x/.bin");
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "manifest.json"), escape).ok());
  EXPECT_EQ(load(), Reason::kCheckpointInvalid);
  // Figures that cannot be, and a list that leaves one file out of the check.
  for (const auto& [from, to] : {std::pair{"\"updates\":2", "\"updates\":-1"},
                                 {"\"updates\":2", "\"updates\":4"},
                                 {"\"skipped_in_a_row\":1", "\"skipped_in_a_row\":-1"},
                                 {"history.jsonl", "state.bin"}}) {
    std::string lie = manifest;
    ASSERT_NE(lie.find(from), std::string::npos) << from;
    lie.replace(lie.find(from), std::string(from).size(), to);
    if (lie.find("history.jsonl") == std::string::npos) {  // the same file twice, with its digest
      const size_t first = lie.find("{\"name\""), end = lie.find('}', first) + 1;
      lie.replace(end + 1, lie.find('}', end) + 1 - end - 1, lie.substr(first, end - first));
    }
    ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "manifest.json"), lie).ok());
    EXPECT_EQ(load(), Reason::kCheckpointInvalid) << lie;
  }
  State small(99);
  ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "manifest.json"), manifest).ok());
  EXPECT_FALSE(LoadCheckpoint(path, small.arrays()).ok());
}

TEST(Checkpoint, OnlyAScaleThatTrainingCouldHaveIsTaken) {
  TempDir dir;
  State state(100);
  CheckpointHead head = Head(3);
  head.loss_scale = {.scale = 1024, .good_steps = 7};
  const std::string path = SaveCheckpoint(dir.path(), head, state.arrays(), History())->directory;
  const auto loaded = LoadCheckpoint(path, state.arrays());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->head.loss_scale.scale, 1024);
  EXPECT_EQ(loaded->head.loss_scale.good_steps, 7);
  const std::string manifest = *ReadFile(JoinPath(path, "manifest.json"));
  const std::string scale = "\"loss_scale\":1024,", steps = "\"loss_scale_good_steps\":7,";
  for (const auto& [from, to] : {std::pair{scale, "\"loss_scale\":0.5,"},
                                 {scale, "\"loss_scale\":1000,"},
                                 {scale, "\"loss_scale\":33554432,"},
                                 {scale, "\"loss_scale\":\"nan\","},
                                 {scale, "\"loss_scale\":\"inf\","},
                                 {steps, ""},
                                 {steps, "\"loss_scale_good_steps\":-1,"},
                                 {steps, "\"loss_scale_good_steps\":2000,"}}) {
    std::string lie = manifest;
    ASSERT_NE(lie.find(from), std::string::npos) << from;
    lie.replace(lie.find(from), from.size(), to);
    ASSERT_TRUE(WriteFileAtomic(JoinPath(path, "manifest.json"), lie).ok());
    EXPECT_EQ(StatusReason(LoadCheckpoint(path, state.arrays()).status()), Reason::kCheckpointInvalid) << lie;
  }
}

TEST(Checkpoint, PruningKeepsTheNewest) {
  TempDir dir;
  State state(10);
  for (const int step : {2, 10, 9, 100}) {
    ASSERT_TRUE(SaveCheckpoint(dir.path(), Head(step), state.arrays(), {}).ok());
  }
  ASSERT_TRUE(MakeDirs(dir.Join("step-50.tmp")).ok());
  ASSERT_TRUE(PruneCheckpoints(dir.path(), 2).ok());
  EXPECT_THAT(*ListDir(dir.path()), testing::ElementsAre("step-10", "step-100"));
  EXPECT_EQ(NewestCheckpoint(dir.path()), dir.Join("step-100"));
}

// One that cannot be deleted: the name that it would get is too long.
TEST(Checkpoint, PruningGoesOnBesideWhatCannotBeDeleted) {
  TempDir dir;
  State state(10);
  const std::string stays = "step-" + std::string(248, '0') + "1";
  ASSERT_TRUE(MakeDirs(dir.Join(stays)).ok());
  for (const int step : {2, 3, 4}) {
    ASSERT_TRUE(SaveCheckpoint(dir.path(), Head(step), state.arrays(), {}).ok());
  }
  ASSERT_TRUE(MakeDirs(dir.Join("step-5.tmp")).ok());
  EXPECT_FALSE(PruneCheckpoints(dir.path(), 2).ok());
  EXPECT_THAT(*ListDir(dir.path()), testing::ElementsAre(stays, "step-3", "step-4"));
}

// Somebody may be about to upload it: what is left of one must never look like a whole one.
TEST(Checkpoint, PruningTakesACheckpointAwayAtOnce) {
  TempDir dir;
  State state(10);
  for (const int step : {1, 2}) {
    ASSERT_TRUE(SaveCheckpoint(dir.path(), Head(step), state.arrays(), {}).ok());
  }
  const std::string old = dir.Join("step-1");
  for (int i = 0; i < 3000; ++i) {  // so that removing takes a while
    std::ofstream(JoinPath(old, "file" + std::to_string(i))) << i;
  }
  std::atomic<bool> halves = false, done = false;
  std::thread reader([&] {
    while (!done) {
      const bool any_gone = !FileExists(JoinPath(old, "manifest.json")) ||
                            !FileExists(JoinPath(old, "state.bin")) || !FileExists(JoinPath(old, "file7"));
      if (any_gone && FileExists(old)) halves = true;
    }
  });
  ASSERT_TRUE(PruneCheckpoints(dir.path(), 1).ok());
  done = true;
  reader.join();
  EXPECT_FALSE(halves);
  EXPECT_THAT(*ListDir(dir.path()), testing::ElementsAre("step-2"));
}

}  // namespace
}  // namespace nibble::engine
