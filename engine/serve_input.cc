#include "engine/serve_input.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "engine/protocol.h"

namespace nibble::engine {
namespace {

// A full mailbox means a worker that talks faster than turns end: it has to wait.
void Deliver(std::string line, Mailbox<std::string>& lines) {
  if (line.empty()) return;
  while (!lines.Post(std::move(line)) && !lines.closed()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace

absl::Status TakeDeviceLock(const std::string& path, int wait_ms) {
  if (path.empty()) return absl::OkStatus();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  constexpr int kPollMs = 50;
  for (int waited_ms = 0;; waited_ms += kPollMs) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    if (waited_ms >= wait_ms) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs));
  }
  close(fd);
  return Error(Reason::kResourceInUse, absl::StrCat("another engine holds ", path));
}

void ReadLines(int fd, Mailbox<std::string>& lines, const std::atomic<bool>& stop) {
  std::string pending;
  char buffer[16 << 10];
  while (!stop) {
    const ssize_t size = read(fd, buffer, sizeof buffer);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) {
      if (stop) return;
      LogInfo("engine.worker_gone");
      std::_Exit(0);
    }
    pending.append(buffer, static_cast<size_t>(size));
    size_t begin = 0;
    for (size_t end; (end = pending.find('\n', begin)) != std::string::npos; begin = end + 1) {
      Deliver(pending.substr(begin, end - begin), lines);
    }
    pending.erase(0, begin);
    if (pending.size() > kMaxLineBytes) {
      LogError("engine.line_too_long", {{"bytes", static_cast<int64_t>(pending.size())}});
      std::_Exit(1);
    }
  }
}

}  // namespace nibble::engine
