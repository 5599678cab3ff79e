#include "worker/blob_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <utime.h>

#include <atomic>
#include <thread>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"

namespace nibble::worker {
namespace {

FileRef Ref(const std::string& name, const std::string& content) {
  return {name, Sha256Hex(content), static_cast<int64_t>(content.size())};
}

// A server that has these blobs, sends them in pieces of 3 bytes, and can be made to break off.
struct Server {
  std::map<std::string, std::string> blobs;
  int calls = 0;
  size_t break_after = SIZE_MAX;
  int64_t last_offset = -1;
  BlobCache::Fetch fetch = [this](const std::string& sha256, int64_t offset,
                                  const BlobCache::Write& write) {
    ++calls;
    last_offset = offset;
    const std::string& content = blobs[sha256];
    size_t sent = 0;
    for (size_t at = static_cast<size_t>(offset); at < content.size(); at += 3) {
      if (sent >= break_after) return absl::UnavailableError("cut");
      const absl::Status status = write(std::string_view(content).substr(at, 3));
      if (!status.ok()) return status;
      sent += 3;
    }
    return absl::OkStatus();
  };
  FileRef Add(const std::string& name, const std::string& content) {
    const FileRef ref = Ref(name, content);
    blobs[ref.sha256] = content;
    return ref;
  }
};

class BlobCacheTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(cache_.Open().ok()); }
  TempDir dir_;
  Server server_;
  BlobCache cache_{dir_.Join("c"), 100};
};

TEST_F(BlobCacheTest, FetchesOnceAndVerifies) {
  const FileRef ref = server_.Add("a", "hello world");
  const auto path = cache_.Get("job/1", ref, server_.fetch);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*ReadFile(*path), "hello world");
  ASSERT_TRUE(cache_.Get("job/1", ref, server_.fetch).ok());
  EXPECT_EQ(server_.calls, 1);
}

TEST_F(BlobCacheTest, GoesOnWhereItWasCut) {
  const FileRef ref = server_.Add("a", "hello world");
  server_.break_after = 6;
  EXPECT_FALSE(cache_.Get("job/1", ref, server_.fetch).ok());
  server_.break_after = SIZE_MAX;
  const auto path = cache_.Get("job/1", ref, server_.fetch);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(server_.last_offset, 6);
  EXPECT_EQ(*ReadFile(*path), "hello world");
}

TEST_F(BlobCacheTest, WrongBytesAreRefusedAndForgotten) {
  FileRef ref = server_.Add("a", "hello world");
  server_.blobs[ref.sha256] = "hello wurld";
  const auto path = cache_.Get("job/1", ref, server_.fetch);
  EXPECT_EQ(StatusReason(path.status()), Reason::kDigestMismatch);
  server_.blobs[ref.sha256] = "hello world and more";
  EXPECT_EQ(StatusReason(cache_.Get("job/1", ref, server_.fetch).status()),
            Reason::kDigestMismatch);
  ref.sha256 = "../../etc/passwd";
  EXPECT_FALSE(cache_.Get("job/1", ref, server_.fetch).ok());
}

TEST_F(BlobCacheTest, ModelsAreDirectoriesOfLinks) {
  const std::vector<FileRef> files = {server_.Add("config.json", "{}"),
                                      server_.Add("model.safetensors", "weights")};
  const std::string digest = Sha256Hex("manifest");
  const auto path = cache_.GetModel("job/1", digest, files, server_.fetch);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*ReadFile(JoinPath(*path, "model.safetensors")), "weights");
  ASSERT_TRUE(cache_.GetModel("job/2", digest, files, server_.fetch).ok());
  EXPECT_EQ(server_.calls, 2);
  EXPECT_FALSE(cache_.GetModel("job/3", Sha256Hex("x"), {Ref("../x", "{}")}, server_.fetch).ok());
}

// Links to what did come would keep it there whatever the bound.
TEST_F(BlobCacheTest, AModelThatDoesNotComeInFullHoldsNothing) {
  const std::vector<FileRef> files = {server_.Add("config.json", "{}"),
                                      server_.Add("model.safetensors", "weights")};
  server_.break_after = 3;
  EXPECT_FALSE(cache_.GetModel("job/1", Sha256Hex("manifest"), files, server_.fetch).ok());
  ASSERT_TRUE(FileExists(dir_.Join("c/blobs/" + files[0].sha256)));
  cache_.Unpin("job/1");
  EXPECT_EQ(cache_.ShrinkTo(0), 0);
  EXPECT_FALSE(FileExists(dir_.Join("c/blobs/" + files[0].sha256)));
}

// Writes into a file that nobody may write to, its size and links as they were.
void Damage(const std::string& path) {
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  FILE* const file = fopen(path.c_str(), "r+b");
  ASSERT_NE(file, nullptr);
  fputc('#', file);
  fclose(file);
}

TEST_F(BlobCacheTest, WhatTheDiskHasChangedIsFetchedAgain) {
  const FileRef data = server_.Add("a", "hello world"), shard = server_.Add("w", "weights");
  const std::string digest = Sha256Hex("model");
  const auto path = cache_.Get("job/1", data, server_.fetch);
  const auto model = cache_.GetModel("job/1", digest, {shard}, server_.fetch);
  ASSERT_TRUE(path.ok() && model.ok());
  Damage(*path);
  Damage(JoinPath(*model, "w"));
  BlobCache later(dir_.Join("c"), 100);  // the next process on the same disk
  ASSERT_TRUE(later.Open().ok());
  const int calls = server_.calls;
  ASSERT_TRUE(later.Get("job/2", data, server_.fetch).ok());
  ASSERT_TRUE(later.GetModel("job/2", digest, {shard}, server_.fetch).ok());
  EXPECT_EQ(server_.calls, calls + 2);
  EXPECT_EQ(*ReadFile(*path), "hello world");
  EXPECT_EQ(*ReadFile(JoinPath(*model, "w")), "weights");
  ASSERT_TRUE(later.GetModel("job/3", digest, {shard}, server_.fetch).ok());
  EXPECT_EQ(server_.calls, calls + 2) << "what was found sound is not fetched";
}

TEST_F(BlobCacheTest, ShrinksTheLeastRecentlyUsedButNotWhatIsPinned) {
  const FileRef old_one = server_.Add("old", std::string(60, 'o'));
  const FileRef pinned = server_.Add("pinned", std::string(60, 'p'));
  const FileRef fresh = server_.Add("fresh", std::string(30, 'f'));
  const auto old_path = cache_.Get("job/1", old_one, server_.fetch);
  const auto pinned_path = cache_.Get("job/2", pinned, server_.fetch);
  ASSERT_TRUE(cache_.Get("job/3", fresh, server_.fetch).ok());
  for (const auto& path : {*old_path, *pinned_path}) {
    const utimbuf long_ago{1000, 1000};
    ASSERT_EQ(utime(path.c_str(), &long_ago), 0);
  }
  EXPECT_EQ(cache_.Shrink(), 150) << "everything is pinned";
  cache_.Unpin("job/1");
  cache_.Unpin("job/3");
  EXPECT_EQ(cache_.Shrink(), 90);
  EXPECT_FALSE(FileExists(*old_path));
  EXPECT_TRUE(FileExists(*pinned_path));
}

TEST_F(BlobCacheTest, ShrinkTakesUnusedModelsApart) {
  ASSERT_TRUE(cache_
                  .GetModel("job/1", Sha256Hex("m"), {server_.Add("w", std::string(200, 'w'))},
                            server_.fetch)
                  .ok());
  EXPECT_EQ(cache_.Shrink(), 200);
  cache_.Unpin("job/1");
  EXPECT_EQ(cache_.Shrink(), 0);
}

TEST_F(BlobCacheTest, KeepsNoNotesOfWhatIsGone) {
  for (int i = 0; i < 20; ++i) {
    const FileRef ref = server_.Add("a", "data set " + std::to_string(i));
    for (int use = 0; use < 2; ++use) ASSERT_TRUE(cache_.Get("job/1", ref, server_.fetch).ok());
    cache_.Unpin("job/1");
    EXPECT_EQ(cache_.ShrinkTo(0), 0);
  }
  EXPECT_LE(cache_.notes(), 1u);
}

// Nothing else would ever take away what a fetch that was given up has left.
TEST_F(BlobCacheTest, ShrinkTakesBeginningsThatNobodyWaitsFor) {
  const FileRef large = server_.Add("large", std::string(300, 'l'));
  server_.break_after = 210;
  EXPECT_FALSE(cache_.Get("job/1", large, server_.fetch).ok());
  EXPECT_EQ(cache_.Shrink(), 210) << "it may go on";
  EXPECT_EQ(cache_.ShrinkTo(210), 210);
  cache_.Unpin("job/1");
  EXPECT_EQ(cache_.ShrinkTo(210), 210) << "there is room for it";
  EXPECT_EQ(cache_.Shrink(), 0);
  EXPECT_FALSE(FileExists(dir_.Join("c/partial/" + large.sha256)));
}

TEST_F(BlobCacheTest, WhatIsPinnedStaysWhileOthersShrink) {
  BlobCache cache(dir_.Join("d"), 0);
  ASSERT_TRUE(cache.Open().ok());
  const FileRef ref = server_.Add("a", "hello world");
  const std::string digest = Sha256Hex("m");
  std::atomic<bool> done = false;
  std::thread shrinker([&] {
    while (!done) cache.Shrink();
  });
  for (int i = 0; i < 300; ++i) {
    const auto path = cache.Get("job/1", ref, server_.fetch);
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_TRUE(FileExists(*path)) << i;
    const auto model = cache.GetModel("job/1", digest, {ref}, server_.fetch);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(FileExists(JoinPath(*model, "a"))) << i;
    cache.Unpin("job/1");
  }
  done = true;
  shrinker.join();
}

TEST_F(BlobCacheTest, HalfBuiltModelsDoNotSurviveARestart) {
  const std::string half = dir_.Join("c/models/" + Sha256Hex("m") + ".building");
  ASSERT_TRUE(MakeDirs(half).ok());
  ASSERT_TRUE(cache_.Open().ok());
  EXPECT_FALSE(IsDirectory(half));
}

}  // namespace
}  // namespace nibble::worker
