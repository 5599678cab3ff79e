#include "engine/output_ring.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace nibble::engine {
namespace {

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t size; (size = read(fd, buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(size));
  return text;
}

TEST(OutputRing, KeepsOrder) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  {
    OutputRing ring(fds[1], 4);
    ring.Push("a");
    ring.Push("b", true);
    ring.Push("c");
    ring.Flush();
  }
  close(fds[1]);
  EXPECT_EQ(ReadAll(fds[0]), "a\nb\nc\n");
  close(fds[0]);
}

TEST(OutputRing, ASlowReaderLosesOnlyStepLines) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  ASSERT_GT(fcntl(fds[1], F_SETPIPE_SZ, 4096), 0);
  std::string text;
  {
    OutputRing ring(fds[1], 8);
    const std::string padding(1000, 'x');
    for (int i = 0; i < 50; ++i) ring.Push("step" + padding, true);
    for (int i = 0; i < 20; ++i) ring.Push("keep" + padding);
    std::thread reader([&] { text = ReadAll(fds[0]); });
    ring.Flush();
    close(fds[1]);
    reader.join();
  }
  close(fds[0]);
  const auto lines = [&](const std::string& word) {
    int count = 0;
    for (size_t at = 0; (at = text.find("\n" + word, at)) != std::string::npos; ++at) ++count;
    return count + text.starts_with(word);
  };
  EXPECT_EQ(lines("keep"), 20);
  EXPECT_LT(lines("step"), 20);
  // What is missing is what is said to be missing.
  const size_t dropped = text.find(R"("count":)");
  ASSERT_NE(dropped, std::string::npos);
  int64_t total = 0;
  for (size_t at = dropped; at != std::string::npos; at = text.find(R"("count":)", at + 1)) {
    total += std::stoll(text.substr(at + 8));
  }
  EXPECT_EQ(total + lines("step"), 50);
}

TEST(OutputRing, ADeadReaderStopsNobody) {
  std::signal(SIGPIPE, SIG_IGN);
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  close(fds[0]);
  OutputRing ring(fds[1], 4);
  for (int i = 0; i < 100; ++i) ring.Push("a");
  ring.Flush();
  close(fds[1]);
}

}  // namespace
}  // namespace nibble::engine
