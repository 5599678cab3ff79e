#include "engine/crash_line.h"

#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "engine/protocol.h"

namespace nibble::engine {
namespace {

constexpr std::array<int, 5> kSignals = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

// Read by the handler, on the thread that the signal is for.
thread_local const std::string* line_of_thread = nullptr;
std::atomic<int> socket_fd{-1};
std::array<struct sigaction, kSignals.size()> before;

void OnCrash(int signal) {
  const int error = errno;
  if (const std::string* line = line_of_thread) {
    (void)!send(socket_fd.load(), line->data(), line->size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  for (size_t i = 0; i < kSignals.size(); ++i) {
    if (kSignals[i] == signal) sigaction(signal, &before[i], nullptr);
  }
  raise(signal);  // delivered when this returns
  errno = error;
}

}  // namespace

// A line may be cut off where the other thread that writes to the socket stands: ours begins anew.
CrashLine::CrashLine(std::string_view attempt)
    : line_(absl::StrCat("\n", TurnLine(std::string(attempt)), "\n")) {
  line_of_thread = &line_;
}
CrashLine::~CrashLine() { line_of_thread = nullptr; }

void SendCrashLinesTo(int fd) {
  if (socket_fd.exchange(fd) >= 0) return;
  struct sigaction action = {};
  action.sa_handler = OnCrash;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before[i]);
}

}  // namespace nibble::engine
