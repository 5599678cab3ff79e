#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/rand.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <thread>

#include "base/clock.h"
#include "base/digest.h"
#include "base/digest_memo.h"
#include "base/error.h"
#include "base/file.h"
#include "base/human_bytes.h"
#include "base/partial_file.h"
#include "base/id.h"
#include "base/keep_openssl.h"
#include "base/mailbox.h"
#include "base/outside_text.h"
#include "base/random.h"
#include "base/status.h"
#include "base/supervisor.h"
#include "base/testing/unprivileged.h"

namespace nibble {
namespace {

// As a thread of gRPC's would that is in a handshake when the process exits.
void UseOpenSslAtTheEnd() {
  unsigned char byte = 0;
  _exit(RAND_priv_bytes(&byte, 1) == 1 ? 0 : 9);
}

TEST(KeepOpenSslDeathTest, ThreadsMayUseItUntilTheProcessIsGone) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // in a process that has not used it yet
  const auto exits = [] {
    KeepOpenSsl();
    std::atexit(UseOpenSslAtTheEnd);  // runs after what OpenSSL registers when it is used first
    (void)Sha256Hex("used");
    std::exit(1);
  };
  EXPECT_EXIT(exits(), testing::ExitedWithCode(0), "");
}

// As long as somebody waits for it, and then with the same result.
TEST(DigestMemo, IsStoppedInTheMiddleOfAFile) {
  const TempDir dir;
  const std::string path = dir.Join("file");
  ASSERT_TRUE(WriteFileAtomic(path, std::string(size_t{9} << 20, 'x')).ok());
  int asked = 0;
  const auto stopped = RememberedSha256HexOfFile(path, dir.path(), [&] { return ++asked == 2; });
  EXPECT_TRUE(absl::IsCancelled(stopped.status())) << stopped.status();
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(ListDir(dir.path())->size(), 1u) << "half a file has no digest to remember";
  const auto whole = RememberedSha256HexOfFile(path, dir.path(), [&] { return ++asked < 0; });
  EXPECT_EQ(*whole, *Sha256HexOfFile(path));
  asked = 0;
  EXPECT_EQ(*RememberedSha256HexOfFile(path, dir.path(), [&] { return ++asked > 0; }), *whole);
  EXPECT_EQ(asked, 0) << "it is remembered";
}

TEST(Error, CarriesReasonMetadataAndViolations) {
  const absl::Status status =
      Error::Field(Reason::kSpecInvalid, "spec.lora.r", "must be between 1 and 256, got 0").With("got", "0");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "spec.lora.r must be between 1 and 256, got 0");
  EXPECT_EQ(StatusReason(status), Reason::kSpecInvalid);
  EXPECT_EQ(StatusMetadata(status).at("got"), "0");
  ASSERT_EQ(StatusViolations(status).size(), 1u);
  EXPECT_EQ(StatusViolations(status)[0].field, "spec.lora.r");
}

TEST(Error, EveryReasonHasANameAndACode) {
  for (Reason reason : AllReasons()) {
    EXPECT_EQ(ReasonFromName(ReasonName(reason)), reason);
    EXPECT_NE(ReasonCode(reason), absl::StatusCode::kUnknown) << ReasonName(reason);
  }
  EXPECT_EQ(static_cast<int>(AllReasons().back()), static_cast<int>(AllReasons().size()));
}

TEST(Id, AcceptsAndRefuses) {
  EXPECT_TRUE(IsValidId("a"));
  EXPECT_TRUE(IsValidId("job-1x"));
  for (const char* bad : {"", "-a", "a-", "A", "a/b", "..", "a..b", "a_b"}) {
    EXPECT_FALSE(IsValidId(bad)) << bad;
  }
  EXPECT_TRUE(IsValidId(NewId("job")));
  EXPECT_EQ(NewUuid().size(), 36u);
  EXPECT_EQ(ParseName("jobs/abc", "jobs", "name").value(), "abc");
  EXPECT_EQ(StatusReason(ParseName("jobs/../x", "jobs", "name").status()), Reason::kNameInvalid);
}

TEST(Digest, KnownVectors) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(HmacSha256Hex("key", "The quick brown fox jumps over the lazy dog"),
            "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8");
  EXPECT_TRUE(IsSha256Hex(Sha256Hex("")));
  EXPECT_FALSE(IsSha256Hex("../../etc/passwd"));
}

TEST(File, AtomicWriteReplacesAndBoundsReads) {
  TempDir dir;
  const std::string path = dir.Join("x");
  ASSERT_TRUE(WriteFileAtomic(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomic(path, "two").ok());
  EXPECT_EQ(ReadFile(path).value(), "two");
  EXPECT_EQ(StatusReason(ReadFile(path, 2).status()), Reason::kRequestTooLarge);
  EXPECT_THAT(ListDir(dir.path()).value(), testing::ElementsAre("x"));
  EXPECT_EQ(MappedFile::Open(path)->view(), "two");
  EXPECT_FALSE(WriteFileAtomic(dir.Join("missing/x"), "").ok());
}

TEST(File, IsBelowComparesWholeComponents) {
  EXPECT_TRUE(IsBelow("/a/b", "/a"));
  EXPECT_FALSE(IsBelow("/ab", "/a"));
  EXPECT_EQ(DirName("/a/b"), "/a");
  EXPECT_EQ(BaseName("/a/b"), "b");
}

TEST(OutsideText, DepthIsThatOfBracketsOutsideOfStrings) {
  EXPECT_EQ(JsonDepth(""), 0);
  EXPECT_EQ(JsonDepth(R"({"a":[1,{"b":2}],"c":[[]]})"), 3);
  EXPECT_EQ(JsonDepth(R"({"[[[\"[[":"{{\\"})"), 1);
  EXPECT_EQ(JsonDepth(std::string(1000, '[')), 1000);
  EXPECT_EQ(JsonDepth("]]]["), 0);
}

TEST(OutsideText, Utf8IsThatOfTheStandard) {
  for (const char* good : {"", "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsValidUtf8(good)) << good;
    EXPECT_EQ(RepairUtf8(good), good);
  }
  // Continuation without a start, overlong, a surrogate, beyond the last code point, cut short.
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF0\x9F\x98"}) {
    EXPECT_FALSE(IsValidUtf8(bad));
    EXPECT_TRUE(IsValidUtf8(RepairUtf8(bad)));
  }
  EXPECT_EQ(RepairUtf8("a\xF0\x9F\x98z"), "a\xEF\xBF\xBDz");
}

TEST(Mailbox, RefusesWhenFullAndDrainsAfterClose) {
  Mailbox<int> box(2);
  EXPECT_TRUE(box.Post(1));
  EXPECT_TRUE(box.Post(2));
  EXPECT_FALSE(box.Post(3));
  box.Close();
  EXPECT_FALSE(box.Post(4));
  EXPECT_THAT(box.Take(10, 0), testing::ElementsAre(1, 2));
  EXPECT_TRUE(box.Take(10, 1'000'000).empty());
}

TEST(Mailbox, WakesTheConsumer) {
  Mailbox<int> box(1);
  std::thread producer([&] { EXPECT_TRUE(box.Post(7)); });
  std::vector<int> got;
  while (got.empty()) got = box.Take(1, 100'000);
  producer.join();
  EXPECT_EQ(got[0], 7);
}

TEST(Random, SameSeedSameNumbers) {
  Random a(5), b(5);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.Below(10), b.Below(10));
  for (int i = 0; i < 1000; ++i) EXPECT_LT(Random(i).Unit(), 1.0);
}

TEST(Clock, SimStandsStill) {
  SimClock clock(10);
  EXPECT_EQ(clock.NowMonotonicUs(), 10);
  clock.AdvanceUs(5);
  EXPECT_EQ(clock.NowUnixUs(), 15);
}

TEST(PartialFile, GoesOnWhereItWasCutAndTakesOnlyTheRightBytes) {
  TempDir dir;
  const std::string path = dir.Join("part"), target = dir.Join("whole");
  const std::string digest = Sha256Hex("0123456789");
  {
    auto file = PartialFile::Open(path, 10);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Append("0123").ok());
  }
  auto file = PartialFile::Open(path, 10);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->offset(), 4);
  EXPECT_EQ(StatusReason(file->Append("4567890")), Reason::kDigestMismatch);
  ASSERT_TRUE(file->Append("456789").ok());
  ASSERT_TRUE(file->IsWhole());
  ASSERT_TRUE(file->Finish(digest, target, 0444).ok());
  EXPECT_EQ(*ReadFile(target), "0123456789");
  EXPECT_FALSE(FileExists(path));

  // Bytes of something else: found out at the end, and gone.
  ASSERT_TRUE(WriteFileAtomic(path, "abcd").ok());
  auto other = PartialFile::Open(path, 10);
  ASSERT_TRUE(other->Append("456789").ok());
  EXPECT_EQ(StatusReason(other->Finish(digest, target, 0444)), Reason::kDigestMismatch);
  EXPECT_FALSE(FileExists(path));
  // Too long to be the beginning of it: dropped at once.
  ASSERT_TRUE(WriteFileAtomic(path, "0123456789ab").ok());
  EXPECT_EQ(PartialFile::Open(path, 10)->offset(), 0);
}

TEST(HumanBytesTest, CountsInThePowersOf1024) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.00 KiB");
  EXPECT_EQ(HumanBytes(-1536), "-1.50 KiB");
  EXPECT_EQ(HumanBytes(int64_t{12} << 30), "12.00 GiB");
  EXPECT_EQ(HumanBytes((int64_t{1} << 40) - 1), "1024.00 GiB");
  EXPECT_EQ(HumanBytes(INT64_MAX), "8192.00 PiB");
}

// A disk was full, or the process ended, between the mode and the name.
TEST(PartialFile, GoesOnWithOneThatHasItsFinalMode) {
  const TempDir dir;
  const Unprivileged nobody(dir.path());
  if (!nobody.ok()) GTEST_SKIP() << "nobody may not write here";
  const std::string path = dir.Join("part"), target = dir.Join("whole");
  {
    auto file = PartialFile::Open(path, 10);
    ASSERT_TRUE(file.ok() && file->Append("0123456789").ok());
    EXPECT_FALSE(file->Finish(Sha256Hex("0123456789"), dir.Join("missing/whole"), 0444).ok());
  }
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  ASSERT_EQ(info.st_mode & 0777, 0444u);
  auto file = PartialFile::Open(path, 10);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->IsWhole());
  EXPECT_TRUE(file->Finish(Sha256Hex("0123456789"), target, 0444).ok());
  EXPECT_EQ(*ReadFile(target), "0123456789");
}

TEST(ErrnoStatusTest, ADiskThatTakesNoBytesSaysWhereAndWhatIsFree) {
  const TempDir dir;
  for (const int error : {ENOSPC, EDQUOT, EFBIG, EROFS}) {
    const absl::Status status = ErrnoStatus(error, "write " + dir.Join("f"));
    EXPECT_EQ(StatusReason(status), Reason::kStorageFull);
    EXPECT_NE(status.message().find(dir.Join("f") + ": "), absl::string_view::npos) << status;
    const std::string free = StatusMetadata(status)["free_bytes"];
    ASSERT_NE(free, "");
    EXPECT_TRUE(std::string(status.message())
                    .ends_with("try again (" + HumanBytes(std::stoll(free)) + " free)"))
        << status;
  }
  EXPECT_EQ(ErrnoStatus(ENOSPC, "write the log").message(),
            "write the log: no space left on the device; free some space and try again");
  EXPECT_EQ(StatusReason(ErrnoStatus(EIO, "write " + dir.Join("f"))), Reason::kUnspecified);
}

// What a supervisor that listens at `name` (@ for the abstract namespace) is told; "" for nothing.
std::string Told(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, sizeof address.sun_path);
  if (name[0] == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), size), 0) << name;
  setenv("NOTIFY_SOCKET", name.c_str(), 1);
  TellSupervisor("READY=1");
  unsetenv("NOTIFY_SOCKET");
  char text[100];
  const ssize_t read = recv(fd, text, sizeof text, MSG_DONTWAIT);
  close(fd);
  return read < 0 ? "" : std::string(text, static_cast<size_t>(read));
}

TEST(TellSupervisor, AtAPathOrAName) {
  const TempDir dir;
  EXPECT_EQ(Told(dir.Join("notify")), "READY=1");
  EXPECT_EQ(Told("@nibble-test-" + NewUuid()), "READY=1");
  TellSupervisor("READY=1");  // to nobody
  for (const std::string& odd : {std::string("notify"), std::string("/"), "/" + std::string(200, 'x')}) {
    setenv("NOTIFY_SOCKET", odd.c_str(), 1);
    TellSupervisor("READY=1");
  }
  unsetenv("NOTIFY_SOCKET");
}

}  // namespace
}  // namespace nibble
