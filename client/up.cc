// `nibble up`: server and one worker as children on one data directory, and `nibble down`.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hang_up.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/kept_child.h"

namespace nibble::client {
namespace {

constexpr int64_t kReadyTimeoutUs = 60'000'000;
constexpr int64_t kGraceMs = 30'000;

volatile std::sig_atomic_t stop_signals = 0;

void InstallStop() {
  struct sigaction action {};
  action.sa_handler = [](int) { stop_signals = stop_signals + 1; };
  for (int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  if (!OutlivesTerminal()) sigaction(SIGHUP, &action, nullptr);
}

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Held as long as this `nibble up` runs, so that a second one on the same directory is told so, and
// so that a pid file left by a crash is never believed.
class PidLock {
 public:
  ~PidLock() {
    if (fd_ >= 0) {
      unlink(path_.c_str());
      close(fd_);
    }
  }
  absl::Status Take(const std::string& path) {
    path_ = path;
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return ErrnoStatus(errno, "open " + path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      close(fd);
      return Error(Reason::kResourceInUse,
                   absl::StrCat("nibble up already runs on this data directory (", path,
                                "); stop it with nibble down"))
          .ToStatus();
    }
    fd_ = fd;
    const std::string pid = absl::StrCat(getpid(), "\n");
    if (ftruncate(fd, 0) != 0 || pwrite(fd, pid.data(), pid.size(), 0) < 0)
      return ErrnoStatus(errno, "write " + path);
    return absl::OkStatus();
  }

 private:
  std::string path_;
  int fd_ = -1;
};

// The pid of the `nibble up` that holds the lock; 0 when none does.
pid_t HolderOf(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  const bool held = flock(fd, LOCK_SH | LOCK_NB) != 0;
  close(fd);
  if (!held) return 0;
  const auto text = ReadFile(path, 64);
  int64_t pid = 0;
  if (!text.ok() || !absl::SimpleAtoi(*text, &pid)) return 0;
  return static_cast<pid_t>(pid);
}

// Nothing has been heard of the worker since.
bool SeenIn(const v1::ListWorkersResponse& before, const v1::Worker& worker) {
  return std::any_of(before.workers().begin(), before.workers().end(), [&](const v1::Worker& known) {
    return known.name() == worker.name() &&
           ToUnixUs(known.last_seen_time()) == ToUnixUs(worker.last_seen_time());
  });
}

class House {
 public:
  House(const Globals& g, const UpArgs& args) : g_(g), args_(args), dir_(DataDir(g)) {}

  absl::Status Start() {
    if (const absl::Status made = MakeDirs(JoinPath(dir_, "run")); !made.ok()) {
      return absl::Status(made.code(), absl::StrCat(std::string(made.message()),
                                                    "; --data-dir or NIBBLE_DATA_DIR names another place"));
    }
    RETURN_IF_ERROR(MakeDirs(JoinPath(dir_, "log")));
    ASSIGN_OR_RETURN(dir_, RealPath(dir_));
    RETURN_IF_ERROR(lock_.Take(JoinPath(dir_, "run/up.pid")));
    // An address file of an earlier run would look like readiness.
    const std::string address_file = AddressFile(dir_);
    if (FileExists(address_file)) RETURN_IF_ERROR(RemoveFile(address_file));
    server_ = std::make_unique<KeptChild>("nibble-server", JoinPath(dir_, "log/server.log"));
    worker_ = std::make_unique<KeptChild>("nibble-worker", JoinPath(dir_, "log/worker.log"));
    RETURN_IF_ERROR(server_->Start(ServerArguments(args_.listen, args_.http)));
    RETURN_IF_ERROR(WaitFor("nibble-server", *server_, [&] { return FileExists(address_file); }));
    address_ = ReadAddress(dir_);
    // Should it have to be started again, clients and the worker find it where it was.
    server_->set_arguments(ServerArguments(address_.grpc, address_.http));
    if (args_.no_worker) return absl::OkStatus();
    std::vector<std::string> arguments = {SiblingBinary("nibble-worker"),
                                          "--server",
                                          address_.grpc,
                                          "--data-dir",
                                          JoinPath(dir_, "worker"),
                                          "--engine",
                                          SiblingBinary("nibble-engine"),
                                          "--shares-file-system"};
    if (args_.threads > 0)
      arguments.insert(arguments.end(), {"--threads", absl::StrCat(args_.threads)});
    if (!args_.memory.empty()) arguments.insert(arguments.end(), {"--memory", args_.memory});
    Globals own = g_;
    own.server = address_.grpc;
    ASSIGN_OR_RETURN(const auto client, Open(own));
    // The server may know a worker of an earlier run, and take it for ready as long as its lease lasts.
    ASSIGN_OR_RETURN(const v1::ListWorkersResponse before, client->ListWorkers());
    RETURN_IF_ERROR(worker_->Start(std::move(arguments)));
    return WaitFor("nibble-worker", *worker_, [&] {
      const auto workers = client->ListWorkers();
      return workers.ok() &&
             std::any_of(workers->workers().begin(), workers->workers().end(), [&](const v1::Worker& w) {
               return (w.state() == v1::IDLE || w.state() == v1::BUSY) && !SeenIn(before, w);
             });
    });
  }

  void Announce() const {
    PrintOut(absl::StrCat(
        "nibble is up\n  gRPC        ", address_.grpc, "\n  Prometheus  ",
        address_.http.empty() ? "off" : absl::StrCat("http://", address_.http, "/metrics"), "\n",
        "  data        ", dir_, "\n  logs        ", JoinPath(dir_, "log"), "\n"));
    if (!args_.detach) PrintOut("Ctrl-C stops it.\n");
  }

  // Until a signal, or until a child is gone for good.
  int Serve() {
    while (stop_signals == 0) {
      for (KeptChild* child : {server_.get(), args_.no_worker ? nullptr : worker_.get()}) {
        if (child == nullptr) continue;
        const auto said = child->Keep(RealClock::Get().NowMonotonicUs());
        if (!said.ok()) return PrintError(g_.terminal, said.status());
        if (!said->empty()) PrintNote(g_.terminal, *said);
      }
      SleepMs(100);
    }
    return kExitOk;
  }

  void Stop() {
    const Transient waiting(g_.terminal, "stopping: jobs are saved first (Ctrl-C again ends it at once)");
    hurry_from_ = stop_signals;
    const auto hurry = [] { return stop_signals > hurry_from_; };
    // The worker first: it hands its checkpoints to the server.
    for (KeptChild* child : {worker_.get(), server_.get()}) {
      if (child != nullptr) child->child().Stop(kGraceMs, hurry);
    }
  }

 private:
  // The user of this machine may name any file of theirs: the server runs as them.
  std::vector<std::string> ServerArguments(const std::string& listen,
                                           const std::string& http) const {
    return {SiblingBinary("nibble-server"),
            "--data-dir",
            ServerDir(dir_),
            "--listen",
            listen,
            "--http-listen",
            http,
            "--model-root",
            "/"};
  }

  template <typename Ready>
  absl::Status WaitFor(const std::string& what, KeptChild& child, const Ready& ready) {
    const int64_t deadline_us = RealClock::Get().NowMonotonicUs() + kReadyTimeoutUs;
    while (!ready()) {
      if (!child.Running()) return absl::InternalError(child.Obituary());
      if (stop_signals > 0) return absl::CancelledError("stopped while starting");
      if (RealClock::Get().NowMonotonicUs() > deadline_us) {
        return absl::DeadlineExceededError(
            absl::StrCat(what, " is not ready after 60 s; see ", JoinPath(dir_, "log")));
      }
      SleepMs(30);
    }
    return absl::OkStatus();
  }

  inline static std::sig_atomic_t hurry_from_ = 0;
  const Globals& g_;
  const UpArgs& args_;
  std::string dir_;
  PidLock lock_;
  std::unique_ptr<KeptChild> server_, worker_;
  ServerAddress address_;
};

// The background copy tells the foreground, through a pipe, what to print and how to exit.
int UpInBackground(const Globals& g, const UpArgs& args) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return PrintError(g.terminal, ErrnoStatus(errno, "pipe"));
  const pid_t pid = fork();
  if (pid < 0) return PrintError(g.terminal, ErrnoStatus(errno, "fork"));
  if (pid > 0) {
    close(fds[1]);
    char code = kExitError;
    while (read(fds[0], &code, 1) < 0 && errno == EINTR) {
    }
    close(fds[0]);
    return code;
  }
  close(fds[0]);
  setsid();
  signal(SIGHUP, SIG_IGN);
  House house(g, args);
  const absl::Status started = house.Start();
  const char code =
      static_cast<char>(started.ok() ? static_cast<int>(kExitOk) : PrintError(g.terminal, started));
  if (started.ok()) house.Announce();
  const int null = open("/dev/null", O_RDWR);
  for (int fd : {STDIN_FILENO, STDOUT_FILENO}) dup2(null, fd);
  const int log = open(JoinPath(DataDir(g), "log/up.log").c_str(),
                       O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  dup2(log >= 0 ? log : null, STDERR_FILENO);
  if (write(fds[1], &code, 1) != 1) return kExitError;
  close(fds[1]);
  const int served = started.ok() ? house.Serve() : code;
  house.Stop();
  return served;
}

}  // namespace

int UpCommand(const Globals& g, const UpArgs& args) {
  InstallStop();
  if (args.detach) return UpInBackground(g, args);
  House house(g, args);
  const absl::Status started = house.Start();
  int code = kExitOk;
  if (started.ok()) {
    house.Announce();
    code = house.Serve();
  } else {
    code = PrintError(g.terminal, started);
  }
  house.Stop();
  if (code == kExitOk) PrintNote(g.terminal, "nibble is down");
  return code;
}

int DownCommand(const Globals& g) {
  const std::string path = JoinPath(DataDir(g), "run/up.pid");
  const pid_t pid = HolderOf(path);
  if (pid <= 0) {
    PrintNote(g.terminal, absl::StrCat("no nibble up runs on ", DataDir(g)));
    return kExitOk;
  }
  if (kill(pid, SIGTERM) != 0)
    return PrintError(g.terminal, ErrnoStatus(errno, absl::StrCat("signal process ", pid)));
  const Transient waiting(g.terminal, "stopping: jobs are saved first");
  const int64_t deadline_us = RealClock::Get().NowMonotonicUs() + (2 * kGraceMs + 5'000) * 1000;
  while (HolderOf(path) == pid) {
    if (RealClock::Get().NowMonotonicUs() > deadline_us) {
      return PrintError(
          g.terminal, absl::DeadlineExceededError(absl::StrCat("process ", pid, " does not end")));
    }
    SleepMs(50);
  }
  PrintNote(g.terminal, "nibble is down");
  return kExitOk;
}

}  // namespace nibble::client
