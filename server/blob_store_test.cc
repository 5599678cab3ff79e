// One contract for both twins, then what only a disk can do.
#include "server/blob_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <vector>

#include "base/digest.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/testing/unprivileged.h"

namespace nibble::server {
namespace {

constexpr int64_t kHourUs = int64_t{3600} * 1'000'000;

BlobStoreOptions SmallOptions() {
  BlobStoreOptions options;
  options.max_blob_bytes = 64 << 20;
  options.min_free_bytes = 0;
  options.max_uploads = 3;
  return options;
}

class BlobStoreContract : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam()) {
      store_ = std::move(OpenDirectoryBlobStore(directory_.path(), SmallOptions(), clock_)).value();
    } else {
      store_ = NewMemoryBlobStore(SmallOptions(), clock_);
    }
  }

  std::string Put(std::string_view data) {
    const std::string digest = Sha256Hex(data);
    auto begun = store_->Begin(digest, static_cast<int64_t>(data.size()));
    EXPECT_TRUE(begun.ok()) << begun.status();
    EXPECT_TRUE(store_->Append(begun->upload_id, 0, data).ok());
    auto done = store_->Finish(begun->upload_id);
    EXPECT_TRUE(done.ok() && done->complete) << done.status();
    return digest;
  }

  TempDir directory_;
  SimClock clock_{RealClock::Get().NowUnixUs()};
  std::unique_ptr<BlobStore> store_;
};

TEST_P(BlobStoreContract, UploadsInPiecesAndReads) {
  const std::string data = "four bits are a nibble";
  const std::string digest = Sha256Hex(data);
  auto state = store_->Begin(digest, 22);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_FALSE(state->complete);
  EXPECT_EQ(state->committed_bytes, 0);
  EXPECT_FALSE(store_->SizeBytes(digest).ok()) << "visible before it is complete";
  ASSERT_TRUE(store_->Append(state->upload_id, 0, data.substr(0, 10)).ok());
  EXPECT_EQ(store_->Get(state->upload_id)->committed_bytes, 10);
  EXPECT_EQ(store_->OpenUploads(), 1);
  auto early = store_->Finish(state->upload_id);
  ASSERT_TRUE(early.ok());
  EXPECT_FALSE(early->complete);
  ASSERT_TRUE(store_->Append(state->upload_id, 10, data.substr(10)).ok());
  auto done = store_->Finish(state->upload_id);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->complete);
  EXPECT_EQ(store_->Finish(state->upload_id).value(), *done) << "a repeat answers as the first";
  EXPECT_EQ(store_->Get(state->upload_id).value(), *done);
  EXPECT_EQ(store_->SizeBytes(digest).value(), 22);
  EXPECT_EQ(store_->Read(digest, 5, 4).value(), "bits");
  EXPECT_EQ(store_->Read(digest, 22, 4).value(), "");
  EXPECT_EQ(StatusReason(store_->Read(digest, 23, 1).status()), Reason::kOffsetMismatch);
  EXPECT_EQ(StatusReason(store_->Read(digest, -1, 1).status()), Reason::kOffsetMismatch);
  EXPECT_EQ(store_->TotalBytes(), 22);
  EXPECT_EQ(store_->OpenUploads(), 0);
}

TEST_P(BlobStoreContract, BeginFindsWhatIsThere) {
  const std::string digest = Put("abc");
  auto again = store_->Begin(digest, 3);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->complete);
  EXPECT_EQ(again->committed_bytes, 3);
  EXPECT_EQ(StatusReason(store_->Begin(digest, 4).status()), Reason::kDigestMismatch);

  const std::string other = Sha256Hex("other");
  auto first = store_->Begin(other, 5);
  ASSERT_TRUE(store_->Append(first->upload_id, 0, "oth").ok());
  auto second = store_->Begin(other, 5);
  EXPECT_EQ(second->upload_id, first->upload_id);
  EXPECT_EQ(second->committed_bytes, 3);
}

// Bytes that are here already are stored once more for nobody, but a tagged sender has to show them.
TEST_P(BlobStoreContract, ATaggedUploadIsCompleteOnlyWithItsBytes) {
  const std::string digest = Put("secret");
  auto mine = store_->Begin(digest, 6, "a1");
  ASSERT_TRUE(mine.ok()) << mine.status();
  EXPECT_FALSE(mine->complete);
  EXPECT_EQ(mine->committed_bytes, 0);
  EXPECT_EQ(mine->upload_id, digest + "-6-a1");
  EXPECT_EQ(ParseUploadId(mine->upload_id)->tag, "a1");
  EXPECT_FALSE(ParseUploadId(digest + "-6-").ok());
  EXPECT_FALSE(ParseUploadId(digest + "-6-../x").ok());
  EXPECT_NE(store_->Begin(digest, 6, "b2")->upload_id, mine->upload_id);
  EXPECT_FALSE(store_->Finish(mine->upload_id)->complete) << "nothing was sent";
  ASSERT_TRUE(store_->Append(mine->upload_id, 0, "secret").ok());
  EXPECT_TRUE(store_->Finish(mine->upload_id)->complete);
  EXPECT_EQ(StatusReason(store_->Finish(mine->upload_id).status()), Reason::kUploadNotFound);
  EXPECT_EQ(store_->TotalBytes(), 6);
  auto guess = store_->Begin(digest, 6, "b2");
  ASSERT_TRUE(store_->Append(guess->upload_id, 0, "s3cret").ok());
  EXPECT_EQ(StatusReason(store_->Finish(guess->upload_id).status()), Reason::kDigestMismatch);
  EXPECT_EQ(store_->Read(digest, 0, 6).value(), "secret");
}

TEST_P(BlobStoreContract, EmptyBlobIsCompleteAtOnce) {
  auto state = store_->Begin(Sha256Hex(""), 0);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_TRUE(state->complete);
  EXPECT_EQ(store_->SizeBytes(Sha256Hex("")).value(), 0);
  EXPECT_EQ(StatusReason(store_->Begin(Sha256Hex("x"), 0).status()), Reason::kDigestMismatch);
}

TEST_P(BlobStoreContract, RefusesWrongOffsetsAndTooMuch) {
  auto state = store_->Begin(Sha256Hex("abcdef"), 6);
  ASSERT_TRUE(store_->Append(state->upload_id, 0, "abc").ok());
  for (int64_t offset : {int64_t{0}, int64_t{2}, int64_t{4}, int64_t{-1}}) {
    const absl::Status status = store_->Append(state->upload_id, offset, "d").status();
    EXPECT_EQ(StatusReason(status), Reason::kOffsetMismatch);
    EXPECT_EQ(StatusMetadata(status)["committed_bytes"], "3");
  }
  EXPECT_EQ(StatusReason(store_->Append(state->upload_id, 3, "defg").status()),
            Reason::kOffsetMismatch);
  EXPECT_TRUE(store_->Append(state->upload_id, 3, "def").ok());
  EXPECT_TRUE(store_->Finish(state->upload_id)->complete);
}

TEST_P(BlobStoreContract, WrongBytesAreDiscarded) {
  auto state = store_->Begin(Sha256Hex("truth"), 5);
  ASSERT_TRUE(store_->Append(state->upload_id, 0, "liars").ok());
  const absl::Status status = store_->Finish(state->upload_id).status();
  EXPECT_EQ(StatusReason(status), Reason::kDigestMismatch);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(store_->SizeBytes(Sha256Hex("truth")).ok());
  EXPECT_EQ(StatusReason(store_->Get(state->upload_id).status()), Reason::kUploadNotFound);
  EXPECT_EQ(Put("truth"), Sha256Hex("truth"));
}

TEST_P(BlobStoreContract, RefusesBadNames) {
  const std::string good = Sha256Hex("a");
  for (const std::string& bad :
       {std::string("../../etc/passwd"), std::string(64, 'A'), good + "0", good.substr(1), std::string()}) {
    EXPECT_EQ(StatusReason(store_->Begin(bad, 1).status()), Reason::kNameInvalid) << bad;
    EXPECT_EQ(StatusReason(store_->SizeBytes(bad).status()), Reason::kBlobNotFound) << bad;
    EXPECT_EQ(StatusReason(store_->Read(bad, 0, 1).status()), Reason::kBlobNotFound) << bad;
    EXPECT_EQ(StatusReason(store_->Pin(bad)), Reason::kBlobNotFound) << bad;
    EXPECT_EQ(store_->PathOf(bad), "");
  }
  for (const std::string& bad : {good, good + "-", good + "-x", good + "-01", good + "-+1",
                                 good + "--1", "../" + good + "-1", std::string("-1")}) {
    EXPECT_EQ(StatusReason(store_->Get(bad).status()), Reason::kUploadNotFound) << bad;
    EXPECT_EQ(StatusReason(store_->Append(bad, 0, "x").status()), Reason::kUploadNotFound) << bad;
  }
  EXPECT_EQ(StatusReason(store_->Begin(good, -1).status()), Reason::kRequestTooLarge);
  EXPECT_EQ(StatusReason(store_->Begin(good, (64 << 20) + 1).status()), Reason::kRequestTooLarge);
}

TEST_P(BlobStoreContract, BoundsTheNumberOfUploads) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store_->Begin(Sha256Hex(std::to_string(i)), 1).ok());
  EXPECT_EQ(StatusReason(store_->Begin(Sha256Hex("3"), 1).status()), Reason::kQuotaExceeded);
  EXPECT_TRUE(store_->Begin(Sha256Hex("1"), 1).ok()) << "finding an open one is not another one";
}

TEST_P(BlobStoreContract, CollectsWhatNobodyNeeds) {
  const std::string kept = Put("referenced");
  const std::string pinned = Put("pinned");
  const std::string dropped = Put("dropped");
  auto open = store_->Begin(Sha256Hex("open"), 4);
  ASSERT_TRUE(store_->Append(open->upload_id, 0, "op").ok());
  EXPECT_TRUE(store_->Unpinned()->empty()) << "all are fresh";
  EXPECT_EQ(store_->SweepUploads()->uploads_removed, 0);
  clock_.AdvanceUs(25 * kHourUs);
  auto unpinned = store_->Unpinned();
  ASSERT_TRUE(unpinned.ok()) << unpinned.status();
  EXPECT_THAT(*unpinned, testing::UnorderedElementsAre(kept, pinned, dropped));
  ASSERT_TRUE(store_->Pin(pinned).ok()) << "after the collector looked";
  auto result = store_->Remove({pinned, dropped, "../x"});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->blobs_removed, 1);
  EXPECT_EQ(store_->SweepUploads()->uploads_removed, 1);
  EXPECT_TRUE(store_->SizeBytes(kept).ok());
  EXPECT_TRUE(store_->SizeBytes(pinned).ok());
  EXPECT_EQ(StatusReason(store_->Pin(dropped)), Reason::kBlobNotFound);
  EXPECT_EQ(StatusReason(store_->Get(open->upload_id).status()), Reason::kUploadNotFound);
  EXPECT_EQ(store_->TotalBytes(), 16);
}

TEST_P(BlobStoreContract, ManySendersOfTheSameBytesAllSucceed) {
  std::string data(300'000, 'x');
  for (int round = 0; round < 20; ++round) {
    data[0] = static_cast<char>('a' + round);
    const std::string digest = Sha256Hex(data);
    std::atomic<int> complete{0};
    const auto send = [&] {
      // As a client does: go on at the offset the store names, until it is complete.
      for (int attempt = 0; attempt < 1000; ++attempt) {
        auto state = store_->Begin(digest, static_cast<int64_t>(data.size()));
        ASSERT_TRUE(state.ok()) << state.status();
        while (state.ok() && !state->complete) {
          const std::string_view rest =
              std::string_view(data).substr(static_cast<size_t>(state->committed_bytes));
          auto appended = store_->Append(state->upload_id, state->committed_bytes, rest.substr(0, 100'000));
          if (!appended.ok()) {
            ASSERT_EQ(StatusReason(appended.status()), Reason::kOffsetMismatch) << appended.status();
            break;
          }
          state = store_->Finish(state->upload_id);
          ASSERT_TRUE(state.ok()) << state.status();
        }
        if (state.ok() && state->complete) {
          ++complete;
          return;
        }
      }
    };
    std::vector<std::thread> senders;
    for (int i = 0; i < 4; ++i) senders.emplace_back(send);
    for (std::thread& sender : senders) sender.join();
    EXPECT_EQ(complete, 4);
    EXPECT_EQ(store_->Read(digest, 0, 400'000).value(), data);
  }
  EXPECT_EQ(store_->OpenUploads(), 0);
}

INSTANTIATE_TEST_SUITE_P(Twins, BlobStoreContract, testing::Bool(),
                         [](const auto& info) { return info.param ? "Directory" : "Memory"; });

std::string Pattern(size_t size) {
  std::string data(size, '\0');
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<char>(i * 31 + (i >> 11));
  return data;
}

TEST(DirectoryBlobStore, ContinuesAfterARestart) {
  TempDir directory;
  const std::string data = Pattern(3 << 20);
  const std::string digest = Sha256Hex(data);
  std::string id;
  {
    auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
    id = store->Begin(digest, 3 << 20)->upload_id;
    ASSERT_TRUE(store->Append(id, 0, std::string_view(data).substr(0, 1 << 20)).ok());
  }
  auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
  EXPECT_EQ(store->Get(id)->committed_bytes, 1 << 20);
  ASSERT_TRUE(store->Append(id, 1 << 20, std::string_view(data).substr(1 << 20)).ok());
  auto done = store->Finish(id);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->complete);
  EXPECT_EQ(Sha256HexOfFile(store->PathOf(digest)).value(), digest);
  store.reset();
  store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
  EXPECT_EQ(store->TotalBytes(), 3 << 20);
  EXPECT_TRUE(store->Begin(digest, 3 << 20)->complete);
}

// All bytes were there and the file was read-only already, but had not its name.
TEST(DirectoryBlobStore, PublishesWhatWasCutShortlyBefore) {
  const TempDir directory;
  const Unprivileged nobody(directory.path());
  if (!nobody.ok()) GTEST_SKIP() << "nobody may not write here";
  const std::string digest = Sha256Hex("a checkpoint");
  std::string id;
  {
    auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
    id = store->Begin(digest, 12)->upload_id;
    ASSERT_TRUE(store->Append(id, 0, "a checkpoint").ok());
  }
  ASSERT_EQ(chmod(directory.Join("uploads/" + id).c_str(), 0440), 0);
  auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
  EXPECT_EQ(store->Begin(digest, 12)->committed_bytes, 12);
  const auto done = store->Finish(id);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->complete);
  EXPECT_EQ(store->Read(digest, 0, 100).value(), "a checkpoint");
}

// The file had its name, but the directory could not be synced: nobody hears that the blob is there before it
// is there for good, and who asks again gets it there. All calls answered ENOENT until a restart.
TEST(DirectoryBlobStore, ANameThatCouldNotBeSyncedIsSyncedLater) {
  const TempDir directory;
  const Unprivileged nobody(directory.path());
  if (!nobody.ok()) GTEST_SKIP() << "nobody may not write here";
  auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
  const std::string digest = Sha256Hex("a checkpoint");
  const std::string folder = DirName(store->PathOf(digest));
  ASSERT_TRUE(MakeDirs(folder).ok());
  const auto send = [&](const std::string& tag) {
    const std::string id = store->Begin(digest, 12, tag)->upload_id;
    EXPECT_TRUE(store->Append(id, 0, "a checkpoint").ok());
    return id;
  };
  const std::string plain = send(""), tagged = send("a1");
  // Names can be made there, but who wants to sync it has to open it.
  ASSERT_EQ(chmod(folder.c_str(), 0300), 0);
  for (int tries = 0; tries < 2; ++tries) {
    for (const std::string& id : {plain, tagged}) {
      const absl::Status failed = store->Finish(id).status();
      EXPECT_THAT(std::string(failed.message()), testing::HasSubstr("open " + folder)) << failed;
      EXPECT_EQ(store->Get(id)->committed_bytes, 12);
      EXPECT_FALSE(store->Get(id)->complete);
    }
    EXPECT_FALSE(store->Begin(digest, 12)->complete);
    EXPECT_FALSE(store->Pin(digest).ok());
    EXPECT_TRUE(store->SweepUploads().ok());
  }
  ASSERT_EQ(chmod(folder.c_str(), 0700), 0);
  const auto done = store->Finish(tagged);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_TRUE(done->complete);
  EXPECT_TRUE(store->Begin(digest, 12)->complete);
  EXPECT_EQ(store->OpenUploads(), 1);
  EXPECT_TRUE(store->SweepUploads().ok());
  EXPECT_EQ(store->OpenUploads(), 0);
  EXPECT_TRUE(store->Finish(plain)->complete);
  EXPECT_EQ(store->TotalBytes(), 12);
  EXPECT_EQ(store->Read(digest, 0, 100).value(), "a checkpoint");
}

TEST(DirectoryBlobStore, SweepsForeignFilesAmongUploads) {
  TempDir directory;
  { (void)OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value(); }
  const std::string stray = directory.Join("uploads/stray.tmp");
  ASSERT_TRUE(WriteFileAtomic(stray, "x").ok());
  auto store = OpenDirectoryBlobStore(directory.path(), SmallOptions(), RealClock::Get()).value();
  EXPECT_FALSE(FileExists(stray));
}

// A server that is out of descriptors, or whose disk fails for a while, has what it has: told otherwise,
// workers gave up the checkpoints of their jobs.
TEST(DirectoryBlobStore, WhatCannotBeOpenedIsNotMissing) {
  TempDir directory;
  SimClock clock{RealClock::Get().NowUnixUs()};
  auto store = std::move(OpenDirectoryBlobStore(directory.path(), SmallOptions(), clock)).value();
  const std::string digest = Sha256Hex("a checkpoint");
  const auto begun = store->Begin(digest, 12);
  ASSERT_TRUE(begun.ok() && store->Append(begun->upload_id, 0, "a checkpoint").ok());
  ASSERT_TRUE(store->Finish(begun->upload_id).ok());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int next = dup(0);
  ASSERT_GE(next, 0);
  close(next);
  const rlimit none{static_cast<rlim_t>(next), before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto read = store->Read(digest, 0, 100);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_FALSE(read.ok());
  EXPECT_NE(StatusReason(read.status()), Reason::kBlobNotFound) << read.status();
  // A directory that cannot be looked into.
  const std::string folder = DirName(store->PathOf(digest));
  ASSERT_TRUE(Rename(folder, folder + ".away").ok());
  ASSERT_EQ(symlink(folder.c_str(), folder.c_str()), 0);
  for (const absl::Status& status : {store->SizeBytes(digest).status(), store->Pin(digest),
                                     store->Get(begun->upload_id).status()}) {
    EXPECT_FALSE(status.ok());
    EXPECT_NE(StatusReason(status), Reason::kBlobNotFound) << status;
    EXPECT_NE(StatusReason(status), Reason::kUploadNotFound) << status;
  }
  ASSERT_TRUE(RemoveFile(folder).ok() && Rename(folder + ".away", folder).ok());
  EXPECT_TRUE(store->Read(digest, 0, 100).ok());
  EXPECT_EQ(StatusReason(store->SizeBytes(Sha256Hex("nothing")).status()), Reason::kBlobNotFound);
}

TEST(DirectoryBlobStore, KeepsAReserveFree) {
  TempDir directory;
  BlobStoreOptions options = SmallOptions();
  options.min_free_bytes = int64_t{1} << 60;
  auto store = OpenDirectoryBlobStore(directory.path(), options, RealClock::Get()).value();
  const absl::Status status = store->Begin(Sha256Hex("a"), 1).status();
  EXPECT_EQ(StatusReason(status), Reason::kStorageFull);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(StatusMetadata(status)["needed_bytes"], std::to_string(options.min_free_bytes + 1));
  const int64_t free_bytes = std::stoll(StatusMetadata(status)["free_bytes"]);
  EXPECT_EQ(status.message(),
            "needs 1024.00 PiB free in the server's data directory, for this upload, the unfinished ones "
            "and a reserve of 1024.00 PiB (--min-free-mb), and " +
                HumanBytes(free_bytes) +
                " are; remove models, data sets, adapters and jobs that nobody needs, or add space");
}

// Runs in a child, because a limit on file size holds for a whole process. 0 = all as expected.
int FillTheDisk(const std::string& root) {
  std::signal(SIGXFSZ, SIG_IGN);
  const std::string data = Pattern(2 << 20);
  auto store = OpenDirectoryBlobStore(root, SmallOptions(), RealClock::Get()).value();
  const std::string id = store->Begin(Sha256Hex(data), 2 << 20)->upload_id;
  struct rlimit limit;
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t unlimited = limit.rlim_cur;
  limit.rlim_cur = (1 << 20) + 100;
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
  if (!store->Append(id, 0, std::string_view(data).substr(0, 1 << 20)).ok()) return 2;
  const absl::Status full = store->Append(id, 1 << 20, std::string_view(data).substr(1 << 20)).status();
  if (StatusReason(full) != Reason::kStorageFull) return 3;
  // What fitted stays; the upload goes on from there when there is room again.
  auto state = store->Get(id);
  if (!state.ok() || state->committed_bytes != (1 << 20) + 100) return 4;
  limit.rlim_cur = unlimited;
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return 5;
  if (!store->Append(id, state->committed_bytes,
                     std::string_view(data).substr(static_cast<size_t>(state->committed_bytes)))
           .ok()) {
    return 6;
  }
  auto done = store->Finish(id);
  return done.ok() && done->complete ? 0 : 7;
}

TEST(DirectoryBlobStore, FullDiskLeavesTheUploadResumable) {
  TempDir directory;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(FillTheDisk(directory.path()));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the step that failed";
}

}  // namespace
}  // namespace nibble::server
