// The small parts of the server: flags, data directory, rooted files, pool, ticker.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/file.h"
#include "server/backup.h"
#include "server/data_dir.h"
#include "server/flags.h"
#include "server/io_pool.h"
#include "server/rooted_files.h"
#include "server/rpc/call.h"
#include "server/server.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"
#include "server/ticker.h"
#include "server/tls_files.h"
#include "server/verify.h"

namespace nibble::server {
namespace {

Flags Parse(std::vector<const char*> words) {
  words.insert(words.begin(), "nibble-server");
  return Flags(static_cast<int>(words.size()), words.data());
}

TEST(Flags, ReadsValuesSwitchesAndWords) {
  Flags flags = Parse(
      {"token", "--name", "a", "create", "--days=3", "--host", "x", "--host=y", "--json-log"});
  EXPECT_EQ(flags.Text("name"), "a");
  EXPECT_EQ(flags.Text("other", "default"), "default");
  EXPECT_EQ(flags.Integer("days", 0, 0, 10), 3);
  EXPECT_EQ(flags.Texts("host"), (std::vector<std::string>{"x", "y"}));
  EXPECT_TRUE(flags.Switch("json-log"));
  EXPECT_FALSE(flags.Switch("in-memory"));
  EXPECT_EQ(flags.words(), (std::vector<std::string>{"token", "create"}));
  EXPECT_TRUE(flags.Check().ok()) << flags.Check();
}

TEST(Flags, RefusesWhatItDoesNotKnow) {
  Flags unknown = Parse({"--lissen", "x"});
  (void)unknown.Text("listen");
  EXPECT_EQ(StatusReason(unknown.Check()), Reason::kUnknownField);
  EXPECT_FALSE(Parse({"--listen"}).Check().ok()) << "a value is missing";
  for (const char* bad : {"--n=x", "--n=1x", "--n=11", "--n=-1", "--n= 1"}) {
    Flags flags = Parse({bad});
    EXPECT_EQ(flags.Integer("n", 5, 0, 10), 5);
    EXPECT_EQ(StatusReason(flags.Check()), Reason::kSpecInvalid) << bad;
  }
  Flags flags = Parse({"--json-log=maybe"});
  (void)flags.Switch("json-log");
  EXPECT_FALSE(flags.Check().ok());
}

TEST(DataDir, OneAtATime) {
  TempDir directory;
  auto first = DataDirLock::Acquire(directory.Join("data"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(StatusReason(DataDirLock::Acquire(directory.Join("data")).status()), Reason::kResourceInUse);
  first->reset();
  EXPECT_TRUE(DataDirLock::Acquire(directory.Join("data")).ok());
  struct stat info;
  ASSERT_EQ(stat(directory.Join("data").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 077, 0u);
}

TEST(DataDir, KeepsItsSecret) {
  TempDir directory;
  const auto secret = LoadOrMakeSecret(directory.path());
  ASSERT_TRUE(secret.ok());
  EXPECT_EQ(secret->size(), 64u);
  EXPECT_EQ(LoadOrMakeSecret(directory.path()).value(), *secret);
  EXPECT_FALSE(WasRestored(directory.path()));
  ASSERT_TRUE(MarkRestored(directory.path()).ok());
  EXPECT_TRUE(WasRestored(directory.path()));
  ClearRestored(directory.path());
  EXPECT_FALSE(WasRestored(directory.path()));
}

TEST(DataDir, SaysWhereTheServerIs) {
  TempDir directory;
  const auto said = [&] { return ReadFile(directory.Join("run/server.json")).value(); };
  const std::string pid = std::to_string(getpid()) + "}\n";
  ASSERT_TRUE(WriteServerInfo(directory.path(), "127.0.0.1:7", "[::1]:8").ok());
  EXPECT_EQ(said(), R"({"listen":"127.0.0.1:7","http_listen":"[::1]:8","host":"127.0.0.1","port":7,)"
                    R"("http_port":8,"pid":)" + pid);
  ASSERT_TRUE(WriteServerInfo(directory.path(), "unix:/run/a \"b\":9", "").ok());
  EXPECT_EQ(said(), R"({"listen":"unix:/run/a \"b\":9","http_listen":"","host":"","port":0,"http_port":0,"pid":)" + pid);
  RemoveServerInfo(directory.path());
  EXPECT_FALSE(FileExists(directory.Join("run/server.json")));
}

// A server that commits all the time is backed up in one piece, not begun anew with each of its commits.
TEST(Backup, EndsWhileTheServerCommits) {
  TempDir directory;
  ASSERT_TRUE(store::OpenSqliteStore(directory.path()).ok());
  using store::Database;
  auto server = Database::Open(directory.Join("state.db"), Database::Mode::kReadWrite).value();
  // Some pieces of the copy; and commits much faster than a piece is copied.
  ASSERT_TRUE(server
                  .Execute("PRAGMA synchronous=OFF; CREATE TABLE filler(x);"
                           "INSERT INTO filler VALUES(zeroblob(30000000)); PRAGMA wal_checkpoint(TRUNCATE)")
                  .ok());
  constexpr int kCommits = 100'000;
  std::atomic<bool> done{false};
  std::atomic<int> commits{0};
  std::thread commit([&] {
    while (!done && commits < kCommits) {
      if (!server.Execute("INSERT OR REPLACE INTO meta VALUES('small', random())").ok()) break;
      ++commits;
    }
  });
  while (commits == 0) std::this_thread::yield();
  const absl::Status copied = store::BackupDatabases(directory.path(), directory.Join("copy"));
  done = true;
  commit.join();
  EXPECT_TRUE(copied.ok()) << copied;
  EXPECT_LT(commits, kCommits) << "it waited for the server to be quiet";
}

// A blob that the collector takes between the copy of the database and that of the blobs is in the backup.
TEST(Backup, HasEveryBlobItsDatabaseMayReferTo) {
  TempDir directory;
  const std::string data = directory.Join("data"), copy = directory.Join("copy");
  ASSERT_TRUE(MakeDirs(data).ok());
  ASSERT_TRUE(store::OpenSqliteStore(data).ok());
  const std::string old = std::string(64, 'a'), fresh = std::string(64, 'b');
  const auto path = [](const std::string& root, const std::string& sha256) {
    return JoinPath(root, "blobs/cas/" + sha256.substr(0, 2) + "/" + sha256);
  };
  const auto put = [&](const std::string& sha256) {
    return MakeDirs(DirName(path(data, sha256))).ok() && WriteFileAtomic(path(data, sha256), "bytes").ok();
  };
  ASSERT_TRUE(put(old));
  const absl::Status status = Backup(data, copy, [&] {
    EXPECT_TRUE(FileExists(JoinPath(copy, "state.db")));
    EXPECT_TRUE(RemoveFile(path(data, old)).ok());
    EXPECT_TRUE(put(fresh));
  });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(FileExists(path(copy, old)));
  EXPECT_TRUE(FileExists(path(copy, fresh)));
}

// What a restored server needs to be called again by those who trusted the old one; and no key of theirs.
TEST(Backup, HasTheServersCertificates) {
  TempDir directory;
  const std::string data = directory.Join("data"), copy = directory.Join("copy");
  const std::string back = directory.Join("back");
  ASSERT_TRUE(MakeDirs(data).ok());
  ASSERT_TRUE(store::OpenSqliteStore(data).ok());
  const auto in = [](const std::string& root, const std::string& name) {
    return JoinPath(root, "tls/" + name);
  };
  const std::vector<std::string> kept = {"ca.crt", "ca.key", "server.crt", "server.key"};
  ASSERT_TRUE(InitTls(JoinPath(data, "tls"), {"box0"}).ok());
  ASSERT_TRUE(IssueClientCertificate(JoinPath(data, "tls"), Role::kClient, "ann").ok());
  ASSERT_EQ(chmod(in(data, "server.key").c_str(), 0644), 0);
  ASSERT_TRUE(Backup(data, copy).ok());
  EXPECT_THAT(WhatIsIn(copy), testing::HasSubstr("of tls/ ca.crt, ca.key, server.crt, server.key"));
  const absl::Status restored = Restore(copy, back);
  ASSERT_TRUE(restored.ok()) << restored;
  for (const std::string& root : {copy, back}) {
    EXPECT_EQ(ListDir(JoinPath(root, "tls")).value(), kept);
    for (const std::string& name : kept) {
      EXPECT_EQ(ReadFile(in(root, name)).value(), ReadFile(in(data, name)).value()) << name;
      struct stat info = {};
      ASSERT_EQ(stat(in(root, name).c_str(), &info), 0);
      if (name.ends_with(".key")) {
        EXPECT_EQ(info.st_mode & 0777, 0600u) << in(root, name);
      }
    }
  }
  EXPECT_THAT(VerifyBlobs(copy)->tls_problems, testing::IsEmpty());
  ASSERT_TRUE(WriteFileAtomic(in(copy, "server.key"), "gone bad").ok());
  EXPECT_THAT(VerifyBlobs(copy)->tls_problems,
              testing::Contains("server.key is not the key of server.crt"));
  // An authority that is there is not replaced in silence.
  const std::string fresh = directory.Join("fresh");
  ASSERT_TRUE(InitTls(JoinPath(fresh, "tls"), {"box0"}).ok());
  EXPECT_THAT(std::string(Restore(copy, fresh).message()), testing::HasSubstr("has a tls/ already"));
  EXPECT_FALSE(FileExists(JoinPath(fresh, "state.db")));
}

class RestoreTest : public testing::Test {
 protected:
  RestoreTest() : data(dir_.Join("data")), copy(dir_.Join("copy")), back(dir_.Join("back")) {
    const bool made = MakeDirs(data).ok() && store::OpenSqliteStore(data).ok() &&
                      store::OpenSqliteMetricStore(data).ok() && MakeDirs(DirName(Blob(data))).ok() &&
                      WriteFileAtomic(Blob(data), "bytes").ok() &&
                      WriteFileAtomic(JoinPath(data, "secret"), "secret").ok() &&
                      InitTls(JoinPath(data, "tls"), {"box0"}).ok() && Backup(data, copy).ok();
    EXPECT_TRUE(made);
  }
  static std::string Blob(const std::string& root) {
    return JoinPath(root, "blobs/cas/aa/" + std::string(64, 'a'));
  }
  static void Put(const std::string& path, std::string_view bytes) {
    ASSERT_TRUE(MakeDirs(DirName(path)).ok());
    ASSERT_TRUE(WriteFileAtomic(path, bytes).ok());
  }

  TempDir dir_;
  const std::string data, copy, back;
};

// Whatever it had come to, and of whichever backup that was.
TEST_F(RestoreTest, OneThatWasCutIsRunAgain) {
  ASSERT_TRUE(MakeDirs(back).ok());
  ASSERT_TRUE(MarkRestored(back).ok());
  for (const char* name : {"secret", "tokens.json", "metrics.db", "state.db.partial", "tls/server.key"})
    Put(JoinPath(back, name), "half");
  Put(Blob(back), "byt");  // by a version that copied in place
  ServerOptions options;
  options.data_dir = back;
  options.listen = "127.0.0.1:0";
  options.http_listen = "";
  EXPECT_THAT(std::string(StartServer(options).status().message()), testing::HasSubstr("was cut off"));
  const absl::Status restored = Restore(copy, back);
  ASSERT_TRUE(restored.ok()) << restored;
  for (const char* name : {"secret", "metrics.db", "state.db", "tls/server.key", "tls/ca.crt"})
    EXPECT_EQ(ReadFile(JoinPath(back, name)).value(), ReadFile(JoinPath(copy, name)).value()) << name;
  EXPECT_EQ(ReadFile(Blob(back)).value(), "bytes");
  EXPECT_FALSE(FileExists(JoinPath(back, "tokens.json"))) << "who may call is what the backup says";
  EXPECT_FALSE(FileExists(JoinPath(back, "state.db.partial")));
  EXPECT_THAT(std::string(Restore(copy, back).message()), testing::HasSubstr("holds a database already"));
  options.blobs.min_free_bytes = 0;
  const auto server = StartServer(options);
  EXPECT_TRUE(server.ok()) << server.status();
}

// Refused before anything is written, so that it is never taken for a restore that was cut.
TEST_F(RestoreTest, NothingOfAnothersIsReplaced) {
  for (const char* name : {"state.db", "state.db-wal", "metrics.db", "secret", "tls/ca.crt"}) {
    const std::string there = dir_.Join(absl::StrCat("there-", BaseName(name)));
    Put(JoinPath(there, name), "mine");
    const absl::Status refused = Restore(copy, there);
    EXPECT_EQ(StatusReason(refused), Reason::kSpecInvalid) << name << ": " << refused;
    EXPECT_FALSE(WasRestored(there)) << name;
    EXPECT_FALSE(FileExists(JoinPath(there, "blobs"))) << name;
    EXPECT_EQ(ReadFile(JoinPath(there, name)).value(), "mine");
  }
  Put(dir_.Join("tokens/tokens.json"), R"({"tokens":[]})");
  EXPECT_TRUE(Restore(copy, dir_.Join("tokens")).ok()) << "the backup has none";
}

TEST(Backup, SaysThatThereAreNoCertificates) {
  TempDir directory;
  const std::string data = directory.Join("data"), copy = directory.Join("copy");
  ASSERT_TRUE(MakeDirs(data).ok());
  ASSERT_TRUE(store::OpenSqliteStore(data).ok());
  ASSERT_TRUE(Backup(data, copy).ok());
  EXPECT_FALSE(FileExists(JoinPath(copy, "tls")));
  EXPECT_THAT(WhatIsIn(copy), testing::HasSubstr("no certificates"));
}

// Where an operator can find it; not a line for each call of a disk that fails, nor for who left.
TEST(LogHidden, SaysWhatCallersAreNotTold) {
  testing::internal::CaptureStderr();
  LogHidden(absl::OkStatus());
  LogHidden(absl::CancelledError("nobody waits"));
  LogHidden(Error(Reason::kJobNotFound, "jobs/a does not exist"));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  LogHidden(absl::UnknownError("read /data/x"));
  for (int i = 0; i < 3; ++i) LogHidden(Error(Reason::kStoreUnavailable, "/data/state.db: disk I/O error"));
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, testing::HasSubstr("read /data/x"));
  EXPECT_EQ(std::vector<absl::string_view>(absl::StrSplit(log, "disk I/O error")).size(), 2u) << log;
}

class RootedFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(directory_.Join("root/model")).ok());
    ASSERT_TRUE(WriteFileAtomic(directory_.Join("root/model/file"), "inside").ok());
    ASSERT_TRUE(WriteFileAtomic(directory_.Join("secret"), "outside").ok());
    ASSERT_EQ(symlink("../../secret", directory_.Join("root/model/link").c_str()), 0);
    ASSERT_EQ(symlink("file", directory_.Join("root/model/inner").c_str()), 0);
    root_ = directory_.Join("root");
  }
  Reason Refusal(const std::string& path) {
    return StatusReason(OpenBelowRoot(root_, path, "path").status());
  }
  TempDir directory_;
  std::string root_;
};

TEST_F(RootedFilesTest, StayBelowTheRoot) {
  EXPECT_EQ(OpenBelowRoot(root_, "model/file", "path")->size_bytes, 6);
  EXPECT_EQ(OpenBelowRoot(root_, root_ + "/model/file", "path")->size_bytes, 6);
  EXPECT_EQ(OpenBelowRoot(root_, "model/inner", "path")->size_bytes, 6) << "a link that stays inside";
  EXPECT_TRUE(OpenBelowRoot(root_, "model", "path")->is_directory);
  for (const std::string& bad :
       {std::string("../secret"), directory_.Join("secret"), std::string("/etc/passwd"),
        std::string("model/link"), std::string("model/../../secret"), std::string("nothing"),
        root_ + "2/x"}) {
    EXPECT_EQ(Refusal(bad), Reason::kPathNotAllowed) << bad;
  }
  root_.clear();
  EXPECT_EQ(Refusal("model/file"), Reason::kPathNotAllowed) << "no root, no paths";
}

TEST_F(RootedFilesTest, ReadsInPieces) {
  const auto read = RootedReader(OpenBelowRoot(root_, "model/file", "path")->path);
  EXPECT_EQ(read(0, 3).value(), "ins");
  EXPECT_EQ(read(3, 100).value(), "ide");
  EXPECT_EQ(read(6, 100).value(), "");
}

TEST(IoPool, RunsWhatIsQueuedBeforeItStops) {
  std::atomic<int> ran{0};
  IoPool pool(2, 100);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(pool.Post([&] { ++ran; }));
  pool.Stop();
  EXPECT_EQ(ran, 50);
  EXPECT_FALSE(pool.Post([] {}));
}

TEST(IoPool, RefusesBeyondItsCapacity) {
  std::promise<void> hold;
  auto held = hold.get_future().share();
  std::promise<void> started;
  IoPool pool(1, 1);
  ASSERT_TRUE(pool.Post([&] {
    started.set_value();
    held.wait();
  }));
  started.get_future().wait();
  EXPECT_TRUE(pool.Post([] {}));
  EXPECT_FALSE(pool.Post([] {}));
  hold.set_value();
}

TEST(Ticker, CallsUntilRemoved) {
  Ticker ticker(/*resolution_us=*/1000);
  std::promise<void> third;
  std::atomic<int> calls{0};
  const int64_t handle = ticker.Add(1000, [&] {
    if (++calls == 3) third.set_value();
  });
  third.get_future().wait();
  ticker.Remove(handle);
  const int after = calls;
  std::promise<void> later;
  std::atomic<int> others{0};
  ticker.Add(1000, [&] {
    if (++others == 3) later.set_value();
  });
  later.get_future().wait();
  EXPECT_EQ(calls, after);
}

}  // namespace
}  // namespace nibble::server
