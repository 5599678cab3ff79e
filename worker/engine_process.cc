#include "worker/engine_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "worker/engine_line.h"

namespace nibble::worker {
namespace {

constexpr int kSendTimeoutMs = 10'000;
// What was killed and does not die, or has handed its output on, is not waited for any longer.
constexpr std::chrono::seconds kDying{3};
constexpr std::chrono::milliseconds kLookAgain{10};  // whether a process whose output has ended has, too
constexpr std::chrono::seconds kCountAgain{1};

// `by_us`: this process has sent it SIGKILL.
ProcessExit ExitOf(int status, const MemoryKills& before, bool by_us) {
  ProcessExit exit;
  if (WIFSIGNALED(status)) {
    exit.code = -1;
    exit.message = absl::StrCat("was ended by signal ", WTERMSIG(status), " (",
                                strsignal(WTERMSIG(status)), ")");
    if (WTERMSIG(status) == SIGKILL) {
      const KillCause cause =
          by_us ? KillCause{false, " by its worker"} : CauseOfKill(before, CountMemoryKills());
      exit.out_of_memory = cause.out_of_memory;
      exit.message += cause.words;
    }
  } else {
    exit.code = WEXITSTATUS(status);
    exit.message =
        exit.code == 127 ? "could not be started" : absl::StrCat("ended with code ", exit.code);
  }
  return exit;
}

int WaitFor(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

struct Descriptors {
  int in = -1;
  int out = -1;
  int err = -1;
  int three = -1;  // -1: none
};

// Between fork and exec: only async-signal-safe calls. Descriptors above 3 are all close-on-exec.
[[noreturn]] void BecomeChild(const Descriptors& fds, pid_t parent, char* const* argv) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  // When memory runs out, an engine costs a few steps; the worker or the server would cost more.
  const int first = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (first >= 0) {
    (void)!write(first, "500", 3);
    close(first);
  }
  // A source among 0 to 3 would be overwritten before it is copied: move all above first.
  const int in = fcntl(fds.in, F_DUPFD_CLOEXEC, 10);
  const int out = fcntl(fds.out, F_DUPFD_CLOEXEC, 10);
  const int err = fcntl(fds.err, F_DUPFD_CLOEXEC, 10);
  const int three = fds.three >= 0 ? fcntl(fds.three, F_DUPFD_CLOEXEC, 10) : -1;
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  if (three >= 0) dup2(three, 3);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int s : {SIGINT, SIGTERM, SIGPIPE, SIGHUP}) signal(s, SIG_DFL);
  execvp(argv[0], argv);
  _exit(127);
}

std::vector<char*> ArgvOf(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  return argv;
}

// PR_SET_PDEATHSIG speaks of the thread that forked, so all children are forked by one thread that
// lives as long as the process.
class Forker {
 public:
  static Forker& Get() {
    static auto* forker = new Forker;
    return *forker;
  }
  pid_t Fork(const Descriptors& fds, char* const* argv) {
    std::lock_guard one(one_at_a_time_);
    std::unique_lock lock(mutex_);
    fds_ = &fds;
    argv_ = argv;
    asked_ = true;
    ready_.notify_all();
    ready_.wait(lock, [&] { return !asked_; });
    if (pid_ < 0) errno = error_;
    return pid_;
  }

 private:
  Forker() : thread_([this] { Loop(); }) {}
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      ready_.wait(lock, [&] { return asked_; });
      const pid_t parent = getpid();
      pid_ = fork();
      if (pid_ == 0) BecomeChild(*fds_, parent, argv_);
      error_ = errno;
      asked_ = false;
      ready_.notify_all();
    }
  }

  std::mutex one_at_a_time_;
  std::mutex mutex_;
  std::condition_variable ready_;
  const Descriptors* fds_ = nullptr;
  char* const* argv_ = nullptr;
  bool asked_ = false;
  pid_t pid_ = -1;
  int error_ = 0;
  std::thread thread_;
};

// Processes that were killed and did not end in time. Asked for with every other one, so that they do not
// stay zombies when they have ended after all.
class Undead {
 public:
  static Undead& Get() {
    static auto* undead = new Undead;
    return *undead;
  }
  void Add(pid_t pid) {
    std::lock_guard lock(mutex_);
    pids_.push_back(pid);
  }
  void Reap() {
    std::lock_guard lock(mutex_);
    std::erase_if(pids_, [](pid_t pid) { return waitpid(pid, nullptr, WNOHANG) != 0; });
  }

 private:
  std::mutex mutex_;
  std::vector<pid_t> pids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EngineProcess>> EngineProcess::Start(
    const std::vector<std::string>& arguments, const std::string& log_file, Callbacks callbacks,
    std::chrono::milliseconds exit_time) {
  Undead::Get().Reap();
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
    return ErrnoStatus(errno, "socketpair");
  Descriptors fds;
  fds.in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  fds.out = open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  fds.err = fds.out;
  fds.three = pair[1];
  if (fds.in < 0 || fds.out < 0) {
    const absl::Status status = ErrnoStatus(errno, "open " + log_file);
    for (int fd : {pair[0], pair[1], fds.in, fds.out}) {
      if (fd >= 0) close(fd);
    }
    return status;
  }
  const std::vector<char*> argv = ArgvOf(arguments);
  const pid_t pid = Forker::Get().Fork(fds, argv.data());
  const int error = errno;
  close(pair[1]);
  close(fds.in);
  close(fds.out);
  if (pid < 0) {
    close(pair[0]);
    return ErrnoStatus(error, "fork");
  }
  return std::unique_ptr<EngineProcess>(new EngineProcess(pid, pair[0], std::move(callbacks), exit_time));
}

EngineProcess::EngineProcess(pid_t pid, int socket, Callbacks callbacks, std::chrono::milliseconds exit_time)
    : pid_(pid),
      socket_(socket),
      callbacks_(std::move(callbacks)),
      exit_time_(exit_time),
      kills_before_(CountMemoryKills()),
      reader_([this] { ReadLoop(); }) {}

EngineProcess::~EngineProcess() {
  Kill();
  reader_.join();
  close(socket_);
}

absl::Status EngineProcess::Send(std::string_view lines) {
  std::lock_guard lock(send_mutex_);
  while (!lines.empty()) {
    const ssize_t sent = send(socket_, lines.data(), lines.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      lines.remove_prefix(static_cast<size_t>(sent));
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      pollfd wait{socket_, POLLOUT, 0};
      if (poll(&wait, 1, kSendTimeoutMs) > 0) continue;
      return Error(Reason::kEngineFailed, "the engine does not read its commands").ToStatus();
    }
    return ErrnoStatus(errno, "send to the engine");
  }
  return absl::OkStatus();
}

void EngineProcess::Kill() {
  std::lock_guard lock(reap_mutex_);
  if (reaped_) return;
  siginfo_t info{};
  const int found = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT | WNOHANG);
  killed_ = killed_ || found != 0 || info.si_pid == 0;  // else it has ended of something else
  // The child may not have made its own group yet; the pid itself is right at any time.
  kill(-pid_, SIGKILL);
  kill(pid_, SIGKILL);
  shutdown(socket_, SHUT_RD);  // what it has said is still read; its end may never come
}

bool EngineProcess::Deliver(std::string& buffer) {
  size_t begin = 0;
  bool good = true;
  for (size_t end; good && (end = buffer.find('\n', begin)) != std::string::npos; begin = end + 1) {
    if (end > begin) good = callbacks_.on_line(std::string_view(buffer).substr(begin, end - begin));
  }
  buffer.erase(0, begin);
  return good && buffer.size() <= kMaxLineBytes;
}

// True once it has ended, and can be reaped.
bool EngineProcess::HasEnded(std::chrono::milliseconds within) const {
  const auto end = std::chrono::steady_clock::now() + within;
  while (true) {
    // WNOWAIT: the pid stays ours until the lock is held, so Kill never hits a stranger.
    siginfo_t info{};
    const int found = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT | WNOHANG);
    if (found == 0 && info.si_pid != 0) return true;
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(kLookAgain);
  }
}

ProcessExit EngineProcess::Reap() {
  bool ended = HasEnded(exit_time_);
  if (!ended) {
    Kill();
    ended = HasEnded(kDying);
  }
  std::lock_guard lock(reap_mutex_);
  reaped_ = true;
  if (ended) return ExitOf(WaitFor(pid_), kills_before_.outlived(), killed_);
  Undead::Get().Add(pid_);
  return {.message = "was killed and does not end", .code = -1};
}

void EngineProcess::ReadLoop() {
  std::string buffer;
  char chunk[16384];
  bool good = true;
  while (good) {
    const ssize_t got = recv(socket_, chunk, sizeof chunk, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    kills_before_.Heard();
    buffer.append(chunk, static_cast<size_t>(got));
    good = Deliver(buffer);
    const auto now = std::chrono::steady_clock::now();
    if (now - counted_ < kCountAgain) continue;
    counted_ = now;
    const MemoryKills kills = CountMemoryKills();
    const bool nothing_unread = recv(socket_, chunk, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
    kills_before_.Counted(kills, nothing_unread);
  }
  // Closed by the engine, or nonsense: either way it is over.
  if (!good) Kill();
  callbacks_.on_exit(Reap());
}

absl::StatusOr<HelperResult> RunHelper(const std::vector<std::string>& arguments,
                                       const std::string& log_file,
                                       const std::function<bool()>& cancelled,
                                       size_t max_output_bytes) {
  Undead::Get().Reap();
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  Descriptors fds;
  fds.in = open("/dev/null", O_RDONLY | O_CLOEXEC);
  fds.out = out[1];
  fds.err = open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fds.err < 0) fds.err = open("/dev/null", O_WRONLY | O_CLOEXEC);
  const MemoryKills kills_before = CountMemoryKills();
  const std::vector<char*> argv = ArgvOf(arguments);
  const pid_t pid = Forker::Get().Fork(fds, argv.data());
  const int error = errno;
  for (int fd : {fds.in, fds.err, out[1]}) close(fd);
  if (pid < 0) {
    close(out[0]);
    return ErrnoStatus(error, "fork");
  }
  HelperResult result;
  std::chrono::steady_clock::time_point killed;
  // Asks whether it is still wanted; true once it was killed and has had its time to die.
  const auto is_lost = [&] {
    if (!result.cancelled && cancelled && cancelled()) {
      result.cancelled = true;
      killed = std::chrono::steady_clock::now();
      kill(-pid, SIGKILL);
      kill(pid, SIGKILL);
    }
    return result.cancelled && std::chrono::steady_clock::now() - killed > kDying;
  };
  char chunk[16384];
  while (!is_lost()) {
    pollfd wait{out[0], POLLIN, 0};
    if (poll(&wait, 1, 100) <= 0) continue;
    const ssize_t got = read(out[0], chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    const size_t room = max_output_bytes - result.output.size();
    result.output.append(chunk, std::min(room, static_cast<size_t>(got)));
  }
  close(out[0]);
  // The end of its output is not its own: a driver may hold what has closed everything.
  int status = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (is_lost()) {
      Undead::Get().Add(pid);
      result.exit = {.message = "was killed and does not end", .code = -1};
      return result;
    }
    std::this_thread::sleep_for(kLookAgain);
  }
  result.exit = ExitOf(status, kills_before, /*by_us=*/result.cancelled);
  return result;
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/statm"));
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  in >> total_pages >> resident_pages;
  return in ? resident_pages * sysconf(_SC_PAGESIZE) : 0;
}

std::string TailOfFile(const std::string& path, size_t max_bytes) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return "";
  const auto size = static_cast<std::streamoff>(in.tellg());
  const std::streamoff begin =
      std::max<std::streamoff>(0, size - static_cast<std::streamoff>(max_bytes));
  in.seekg(begin);
  std::string text(static_cast<size_t>(size - begin), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 && c != '\n') c = ' ';
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

}  // namespace nibble::worker
