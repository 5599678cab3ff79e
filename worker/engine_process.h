// One nibble-engine process: started on a socket pair, read line by line, ended with certainty.
//
// The engine gets one end of the pair as fd 3, /dev/null as its input, a log file as its output,
// and a process group of its own. It dies with this process (PR_SET_PDEATHSIG), also when we are
// killed -9: end of file on the socket says the same. A reader thread hands over lines and, last,
// the exit, after the process was reaped; callbacks come from that thread only. Other methods are
// thread-safe. Of a process that has closed its end and does not exit, as with a driver that hangs, the exit
// comes all the same: it is killed after a while, and one that does not even die of that is left to itself.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/memory_kills.h"

namespace nibble::worker {

struct ProcessExit {
  std::string message;         // "ended with code 3", "was ended by signal 9"
  bool out_of_memory = false;  // killed, while the kernel's own count of such kills went up (memory_kills.h)
  int code = 0;                // exit code; -1 when ended by a signal
};

class EngineProcess {
 public:
  struct Callbacks {
    // False: the engine talks nonsense and is killed.
    std::function<bool(std::string_view line)> on_line;
    std::function<void(const ProcessExit&)> on_exit;
  };

  // From its end of file to its exit: drivers give memory back in that time.
  static constexpr std::chrono::milliseconds kExitTime{30'000};

  // `arguments[0]` is the binary. "--fd 3" must be among them.
  static absl::StatusOr<std::unique_ptr<EngineProcess>> Start(
      const std::vector<std::string>& arguments, const std::string& log_file, Callbacks callbacks,
      std::chrono::milliseconds exit_time = kExitTime);
  // Kills if need be and waits for the reader.
  ~EngineProcess();
  EngineProcess(const EngineProcess&) = delete;
  EngineProcess& operator=(const EngineProcess&) = delete;

  // Whole lines. A process that does not read for long is not waited for: UNAVAILABLE.
  absl::Status Send(std::string_view lines);
  // SIGKILL to the whole group.
  void Kill();
  pid_t pid() const { return pid_; }

 private:
  EngineProcess(pid_t pid, int socket, Callbacks callbacks, std::chrono::milliseconds exit_time);
  void ReadLoop();
  bool Deliver(std::string& buffer);
  bool HasEnded(std::chrono::milliseconds within) const;
  ProcessExit Reap();

  const pid_t pid_;
  const int socket_;
  const Callbacks callbacks_;
  const std::chrono::milliseconds exit_time_;
  KillsBefore kills_before_;  // of the reader, as the next
  std::chrono::steady_clock::time_point counted_ = std::chrono::steady_clock::now();
  std::mutex send_mutex_;
  std::atomic<bool> reaped_{false};
  bool killed_ = false;    // by us; under reap_mutex_
  std::mutex reap_mutex_;  // no signal to a pid that was given back
  std::thread reader_;
};

// Runs a helper (profile, validate) to its end, its output in `log_file`; `cancelled` is asked now
// and then, and kills it; one that does not die is left to itself after some seconds. Its standard output
// comes back, at most `max_output_bytes` of it.
struct HelperResult {
  ProcessExit exit;
  std::string output;
  bool cancelled = false;
};
absl::StatusOr<HelperResult> RunHelper(const std::vector<std::string>& arguments,
                                       const std::string& log_file,
                                       const std::function<bool()>& cancelled,
                                       size_t max_output_bytes = size_t{4} << 20);

// Memory of a process that is in RAM now, mapped files included; 0 when it is gone.
int64_t ResidentBytes(pid_t pid);

// The end of a text file, for messages; control characters left out.
std::string TailOfFile(const std::string& path, size_t max_bytes);

}  // namespace nibble::worker
