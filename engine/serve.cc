#include "engine/serve.h"

#include <sys/socket.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "base/log.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "engine/output_ring.h"
#include "engine/serve_input.h"
#include "engine/serve_loop.h"

namespace nibble::engine {
namespace {

constexpr size_t kRingLines = 1024;

}  // namespace

absl::Status Serve(const ServeOptions& options) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  RETURN_IF_ERROR(TakeDeviceLock(options.lock_path, options.lock_wait_ms));
  Mailbox<std::string> lines(ServeLoop::kMailboxCommands);
  OutputRing out(options.fd, kRingLines);
  std::atomic<bool> stop = false;
  std::thread reader([&] { ReadLines(options.fd, lines, stop); });
  const absl::Status status = ServeLoop(options, lines, out).Run();
  if (!status.ok()) LogError("engine.stopped", {{"error", std::string(status.message())}});
  stop = true;
  lines.Close();
  shutdown(options.fd, SHUT_RD);  // wakes the reader
  reader.join();
  return status;
}

}  // namespace nibble::engine
