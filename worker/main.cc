// nibble-worker: trains what a server gives it.
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hang_up.h"
#include "base/id.h"
#include "base/keep_openssl.h"
#include "base/log.h"
#include "base/status.h"
#include "base/supervisor.h"
#include "proto/endpoint.h"
#include "worker/agent_loop.h"
#include "worker/devices.h"
#include "worker/drain_limit.h"
#include "worker/metrics.h"
#include "worker/server_client.h"

namespace nibble::worker {
namespace {

// Exit code of a worker whose name another process has taken. Whoever starts it again would take
// the name back, and the two would go on losing each other's attempts: the unit file does not.
constexpr int kSuperseded = 3;

constexpr char kUsage[] =
    "nibble-worker: trains what a nibble-server gives it\n"
    "\n"
    "  --server HOST:PORT   of the server (NIBBLE_SERVER; default 127.0.0.1:7070)\n"
    "  --data-dir DIR       caches, attempts, identity (default ./nibble-worker); --work-dir is "
    "the same\n"
    "  --worker-id ID       stable name (default: made once, kept in the data directory)\n"
    "  --engine PATH        nibble-engine (default: beside this binary)\n"
    "  --device NAME        what to train on: cpu (default), cuda (every GPU), cuda:1, auto (GPUs, "
    "else\n"
    "                       cpu); may be given several times\n"
    "  --threads N          of the engine (default: as many as it may use processors)\n"
    "  --memory SIZE        to offer, e.g. 8GiB (default: what is available now less 1 GiB, half "
    "of it\n"
    "                       beside GPUs; of a GPU what is free)\n"
    "  --pinned-memory SIZE of this host, page-locked, for all GPUs together: paged optimizers, "
    "offloaded\n"
    "                       activations (default: half of what is available now, beside the "
    "processor as a\n"
    "                       device half of what that leaves)\n"
    "  --cache-size SIZE    of fetched models and data, and as much again of quantized bases "
    "(default 64GiB)\n"
    "  --http HOST:PORT     serve /metrics there (default: not at all)\n"
    "  --token-file FILE    access token (NIBBLE_TOKEN_FILE)\n"
    "  --ca-file FILE       certificates to trust, for TLS (NIBBLE_CA_FILE)\n"
    "  --shares-file-system the server's paths are valid here\n"
    "  --log json|text\n"
    "SIGTERM drains: checkpoint, release, exit; two minutes at most. A second one exits at once.\n"
    "Exit codes: 0 drained, 1 error, or nibble-engine was replaced: to be started again; 2 bad flags, 3\n"
    "another process has this worker's name.\n";

struct Flags {
  std::map<std::string, std::string> values;
  std::vector<std::string> devices;
  bool shares_file_system = false;
  std::string Get(const std::string& name, const char* variable,
                  const std::string& otherwise) const {
    const auto it = values.find(name);
    if (it != values.end()) return it->second;
    const char* env = variable ? std::getenv(variable) : nullptr;
    return env && *env ? env : otherwise;
  }
};

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  static const std::vector<std::string> kNames = {
      "server", "data-dir",   "work-dir", "worker-id",  "engine",  "device", "threads",
      "memory", "cache-size", "http",     "token-file", "ca-file", "log",    "pinned-memory"};
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--shares-file-system") {
      flags.shares_file_system = true;
      continue;
    }
    const size_t equals = argument.find('=');
    const std::string name = argument.rfind("--", 0) == 0 ? argument.substr(2, equals - 2) : "";
    if (std::find(kNames.begin(), kNames.end(), name) == kNames.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag ", argument, "; --help lists them"));
    }
    if (equals != std::string::npos) {
      flags.values[name] = argument.substr(equals + 1);
    } else if (i + 1 < argc) {
      flags.values[name] = argv[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(argument, " needs a value"));
    }
    if (name == "device") flags.devices.push_back(flags.values[name]);
  }
  return flags;
}

// One worker per data directory: two would clean each other's attempts away.
absl::Status LockDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "open " + path);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    close(fd);
    return Error(Reason::kResourceInUse,
                 absl::StrCat("another nibble-worker uses this data directory (", path, ")"))
        .ToStatus();
  }
  return absl::OkStatus();  // held until the process ends
}

absl::StatusOr<std::string> WorkerId(const Flags& flags, const std::string& dir) {
  const std::string given = flags.Get("worker-id", nullptr, "");
  const std::string path = JoinPath(dir, "worker-id");
  std::string kept;
  if (FileExists(path)) {
    ASSIGN_OR_RETURN(kept, ReadFile(path, 200));
    kept = std::string(absl::StripAsciiWhitespace(kept));
  }
  std::string id = given.empty() ? kept : given;
  if (id.empty()) id = NewId("w");
  if (!IsValidId(id)) {
    return Error::Field(
               Reason::kNameInvalid, "--worker-id",
               absl::StrCat("must be 1 to 63 characters of a-z, 0-9 and -, got \"", id, "\""))
        .ToStatus();
  }
  // Not when it is there: on a full disk a worker must be able to start, so that it can make room.
  if (id != kept) RETURN_IF_ERROR(WriteFileAtomic(path, id + "\n"));
  return id;
}

std::string BesideThisBinary(const std::string& name) {
  const auto self = RealPath("/proc/self/exe");
  return self.ok() ? JoinPath(DirName(*self), name) : name;
}

absl::StatusOr<ServerClientOptions> ServerOptions(const Flags& flags) {
  ServerClientOptions options;
  options.server = flags.Get("server", "NIBBLE_SERVER", options.server);
  options.ca_file = flags.Get("ca-file", "NIBBLE_CA_FILE", "");
  const std::string token_file = flags.Get("token-file", "NIBBLE_TOKEN_FILE", "");
  if (!token_file.empty()) {
    const absl::StatusOr<std::string> token = ReadFile(token_file, 4096);
    if (!token.ok()) {
      return Error(Reason::kSpecInvalid,
                   absl::StrCat("--token-file (or NIBBLE_TOKEN_FILE): ",
                                std::string(token.status().message())))
          .ToStatus();
    }
    options.token = std::string(absl::StripAsciiWhitespace(*token));
  }
  return options;
}

absl::StatusOr<DeviceOptions> DeviceFlags(const Flags& flags, const std::string& dir) {
  DeviceOptions options;
  options.engine_binary = flags.Get("engine", "NIBBLE_ENGINE", BesideThisBinary("nibble-engine"));
  options.log_file = JoinPath(dir, "log/profile.log");
  if (const std::string threads = flags.Get("threads", nullptr, ""); !threads.empty()) {
    if (!absl::SimpleAtoi(threads, &options.threads) || options.threads < 1 ||
        options.threads > 1024) {
      return Error::Field(Reason::kSpecInvalid, "--threads",
                          absl::StrCat("must be 1 to 1024, got ", threads))
          .ToStatus();
    }
  } else {
    options.threads = AvailableThreads();
  }
  if (const std::string memory = flags.Get("memory", nullptr, ""); !memory.empty()) {
    ASSIGN_OR_RETURN(options.memory_bytes, ParseBytes(memory, "--memory"));
  }
  return options;
}

// Fills in the identity's devices, and what the engine calls each of them.
absl::StatusOr<DeviceOptions> FindDevices(const Flags& flags, const std::string& dir,
                                          WorkerIdentity& identity,
                                          std::map<std::string, std::string>& names) {
  ASSIGN_OR_RETURN(DeviceOptions options, DeviceFlags(flags, dir));
  const std::vector<std::string> words =
      flags.devices.empty() ? std::vector<std::string>{"cpu"} : flags.devices;
  std::vector<GpuInfo> gpus;
  std::string why;
  if (words != std::vector<std::string>{"cpu"}) {
    ASSIGN_OR_RETURN(gpus, ListGpus(options.engine_binary, options.log_file, &why));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> devices, ResolveDevices(words, gpus, why));
  names.clear();
  int64_t pinned_bytes = 0;
  if (const std::string pinned = flags.Get("pinned-memory", nullptr, ""); !pinned.empty()) {
    ASSIGN_OR_RETURN(pinned_bytes, ParseBytes(pinned, "--pinned-memory"));
  }
  const auto is_gpu = [](const std::string& device) { return device.rfind("cuda", 0) == 0; };
  const int64_t gpu_count = std::count_if(devices.begin(), devices.end(), is_gpu);
  ASSIGN_OR_RETURN(const HostShare share,
                   ShareHost({.available_bytes = AvailableMemoryBytes(),
                              .has_cpu = gpu_count < static_cast<int64_t>(devices.size()),
                              .gpus = gpu_count,
                              .asked_cpu_bytes = options.memory_bytes,
                              .asked_pinned_bytes = pinned_bytes,
                              .machine_bytes = MachineMemoryBytes()}));
  const int64_t gpu_memory_bytes = options.memory_bytes;
  const bool every_gpu = std::count(words.begin(), words.end(), "cuda") > 0 ||
                         std::count(words.begin(), words.end(), "auto") > 0;
  absl::Status left_out;
  for (const std::string& name : devices) {
    options.device = name;
    options.memory_bytes = is_gpu(name) ? gpu_memory_bytes : share.cpu_bytes;
    options.pinned_bytes = is_gpu(name) ? share.pinned_bytes : 0;
    options.host_bytes = is_gpu(name) ? share.host_bytes : 0;
    const absl::StatusOr<DeviceInfo> measured = MeasureDevice(options, gpus);
    if (!measured.ok()) {
      // One GPU of several that nobody named does not keep the others from work.
      if (!every_gpu || !is_gpu(name)) return measured.status();
      LogError("worker.device_left_out",
               {{"device", name}, {"why", std::string(measured.status().message())}});
      left_out = measured.status();
      continue;
    }
    const DeviceInfo& device = *measured;
    identity.devices.push_back(device);
    names[device.id] = name;
    LogInfo("worker.device", {{"worker", identity.worker_id},
                              {"device", device.id},
                              {"description", device.description},
                              {"body", device.profile.body},
                              {"capacity_bytes", device.profile.capacity_bytes},
                              {"pinned_capacity_bytes", device.profile.pinned_capacity_bytes},
                              {"threads", static_cast<int64_t>(device.profile.threads)}});
  }
  if (identity.devices.empty()) return left_out;
  return options;
}

// Signals are taken by one thread; the first asks for a drain, the second ends the process. A drain
// waits for the server to take what is here; a server that is gone must not keep us for ever.
void HandleSignals(const sigset_t& signals, AgentLoop& loop, const std::atomic<bool>& over) {
  const Clock& clock = RealClock::Get();
  DrainLimit limit;
  bool given_up = false;
  while (!over) {
    const timespec wait{0, 200'000'000};
    const int signal = sigtimedwait(&signals, nullptr, &wait);
    const int64_t now_us = clock.NowMonotonicUs();
    if (signal >= 0) {
      LogInfo("worker.signal", {{"signal", signal}});
      if (limit.begun()) _exit(1);
      limit.Begin(now_us);
      TellSupervisor("STOPPING=1");
      loop.RequestDrain();
    }
    if (!given_up && limit.Passed(loop.counts().attempts, now_us)) {
      given_up = true;
      LogWarning("worker.drain_given_up", {{"attempts", loop.counts().attempts.load()}});
      loop.RequestStop();
    }
  }
}

absl::Status Work(const Flags& flags, const sigset_t& signals) {
  std::string dir = flags.Get("data-dir", nullptr, flags.Get("work-dir", nullptr, "nibble-worker"));
  RETURN_IF_ERROR(MakeDirs(JoinPath(dir, "log")));
  ASSIGN_OR_RETURN(dir, RealPath(dir));
  // Other people's data sets and adapters are kept here: as in the server's, nobody else looks.
  if (chmod(dir.c_str(), 0700) != 0) return ErrnoStatus(errno, "chmod " + dir);
  RETURN_IF_ERROR(LockDirectory(JoinPath(dir, "lock-worker")));
  WorkerIdentity identity;
  ASSIGN_OR_RETURN(identity.worker_id, WorkerId(flags, dir));
  identity.incarnation = NewUuid();
  identity.version = NIBBLE_VERSION;
  identity.shares_file_system = flags.shares_file_system;
  AgentLoopOptions options;
  ASSIGN_OR_RETURN(const DeviceOptions device_options,
                   FindDevices(flags, dir, identity, options.devices));
  for (const auto& [id, name] : options.devices) {
    if (name.rfind("cuda", 0) == 0) options.agent.probed_devices.insert(id);
  }
  for (const DeviceInfo& device : identity.devices) {
    const spec::DeviceProfile& p = device.profile;
    options.agent.numerics[device.id] = absl::StrCat(p.build, "/", p.backend, "/", p.body);
  }
  ASSIGN_OR_RETURN(ServerClientOptions server, ServerOptions(flags));
  ASSIGN_OR_RETURN(const auto link, ConnectToServer(std::move(server), identity));

  options.work_dir = dir;
  options.engine_binary = device_options.engine_binary;
  options.threads = device_options.threads;
  options.shares_file_system = identity.shares_file_system;
  if (const std::string size = flags.Get("cache-size", nullptr, ""); !size.empty()) {
    ASSIGN_OR_RETURN(options.cache_max_bytes, ParseBytes(size, "--cache-size"));
  }
  AgentLoop loop(std::move(options), *link);
  ASSIGN_OR_RETURN(const auto metrics,
                   ServeMetrics(flags.Get("http", nullptr, ""), identity, dir, loop.counts()));
  // Its flags and devices are good; whether the server is there is another matter, and it waits for it.
  TellSupervisor("READY=1");
  std::atomic<bool> over{false};
  std::thread signal_thread([&] { HandleSignals(signals, loop, over); });
  const absl::Status status = loop.Run();
  over = true;
  signal_thread.join();
  return status;
}

int Main(int argc, char** argv) {
  KeepOpenSsl();
  PollWhileConnecting();
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--help" || std::string(argv[i]) == "-h") {
      std::fputs(kUsage, stdout);
      return 0;
    }
    if (std::string(argv[i]) == "--version") {
      std::puts("nibble-worker " NIBBLE_VERSION);
      return 0;
    }
  }
  const auto flags = ParseFlags(argc, argv);
  if (!flags.ok()) {
    std::fprintf(stderr, "nibble-worker: %s\n", std::string(flags.status().message()).c_str());
    return 2;
  }
  InitLog("nibble-worker", flags->Get("log", "NIBBLE_LOG_FORMAT", "text") == "json");
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  // Before any thread starts, so that all of them leave these signals to ours.
  sigset_t signals;
  sigemptyset(&signals);
  for (int s : {SIGTERM, SIGINT}) sigaddset(&signals, s);
  if (!OutlivesTerminal()) sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const absl::Status status = Work(*flags, signals);
  if (status.ok()) return 0;
  if (StatusReason(status) == Reason::kStaleAttempt) {
    LogError("worker.superseded",
             {{"why", std::string(status.message())},
              {"what_to_do",
               "if that is another machine, give each a --worker-id of its own (of a copied data "
               "directory remove the file worker-id)"}});
    return kSuperseded;
  }
  LogError("worker.failed", {{"why", std::string(status.message())}});
  return 1;
}

}  // namespace
}  // namespace nibble::worker

int main(int argc, char** argv) { return nibble::worker::Main(argc, argv); }
