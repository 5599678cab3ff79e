#include "client/child.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"

namespace nibble::client {

Child::~Child() {
  if (pid_ > 0) Stop(0, nullptr);
}

absl::Status Child::Start(const std::vector<std::string>& arguments, const std::string& log_file) {
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const int log = open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0) return ErrnoStatus(errno, "open " + log_file);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    const int error = errno;
    close(log);
    close(null);
    return ErrnoStatus(error, "fork");
  }
  if (pid == 0) {
    // Only async-signal-safe calls from here on.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(log);
  close(null);
  pid_ = pid;
  return absl::OkStatus();
}

bool Child::Running() {
  if (pid_ <= 0) return false;
  int status = 0;
  const pid_t got = waitpid(pid_, &status, WNOHANG);
  if (got == 0 || (got < 0 && errno == EINTR)) return true;
  how_ = WIFSIGNALED(status)          ? absl::StrCat("was ended by signal ", WTERMSIG(status))
         : WEXITSTATUS(status) == 127 ? "could not be started"
                                      : absl::StrCat("ended with code ", WEXITSTATUS(status));
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
  hopeless_ = code == 127 || code == 2 || code == 3;
  pid_ = -1;
  return false;
}

void Child::Signal(int signal) {
  if (pid_ > 0) kill(pid_, signal);
}

void Child::Stop(int64_t grace_ms, bool (*hurry)()) {
  if (!Running()) return;
  Signal(SIGTERM);
  const int64_t deadline_us = RealClock::Get().NowMonotonicUs() + grace_ms * 1000;
  while (Running()) {
    if (RealClock::Get().NowMonotonicUs() >= deadline_us || (hurry && hurry())) {
      // The group: a worker's engines live in groups of their own and end by themselves.
      kill(-pid_, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace nibble::client
