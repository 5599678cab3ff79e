// nibble-server: the control plane, and the few commands an operator needs beside it.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hang_up.h"
#include "base/id.h"
#include "base/keep_openssl.h"
#include "base/log.h"
#include "base/supervisor.h"
#include "server/auth.h"
#include "server/backup.h"
#include "server/data_dir.h"
#include "server/flags.h"
#include "server/server.h"
#include "server/tls_files.h"
#include "server/verify.h"

namespace nibble::server {
namespace {

constexpr char kHelp[] =
    R"(nibble-server: takes fine-tuning jobs over gRPC and places them on workers.

  nibble-server --data-dir DIR [flags]            serve
  nibble-server init-tls --data-dir DIR --host NAME [--host NAME ...]
                         [--client ROLE:[PROJECT/]NAME ...]
  nibble-server token create --data-dir DIR --name [PROJECT/]NAME [--role client|worker|admin]
                             [--expires-days N]
  nibble-server token ls | revoke ID --data-dir DIR
  nibble-server backup --data-dir DIR --to DIR    a consistent copy, also while a server runs
  nibble-server restore --from DIR --data-dir DIR into an empty directory; again after it was cut off
  nibble-server verify --data-dir DIR             every blob read and compared with its digest; also of a
                                                  backup, also while a server runs; and its certificates

Flags of the server:
  --data-dir DIR               everything it keeps (default ~/.local/share/nibble/server)
  --listen ADDRESS             gRPC, HOST:PORT or unix:/PATH (127.0.0.1:7070; port 0 = a free one, written to
                               DIR/run/server.json)
  --http-listen HOST:PORT      /metrics, /healthz, /readyz (127.0.0.1:7071; "" = none)
  --model-root DIR             models and data sets may be named by path below it (off)
  --tls-cert, --tls-key FILE   needed for any address that is not loopback, with a token or --client-ca
  --client-ca FILE             accept client certificates of this authority (common name ROLE:[PROJECT/]NAME)
  --reflection                 gRPC reflection off loopback too
  --project NAME=WEIGHT[:JOBS[:GIB]]  share of a project under backlog (1), and at most so many attempts
                               and so much memory at one time (no bound); may be repeated
  --jobs-per-device N          attempts that share a device (8)
  --load-per-device PERCENT    sum of the measured shares of a device's time that is admitted (800)
  --lease-seconds N            a silent worker is lost after this (120)
  --metrics-job-linger-seconds N  a job's series stay so long after its end (300)
  --metrics-max-job-series N   jobs that get series of their own (100)
  --min-free-mb N              uploads are refused when less would stay free (512)
  --max-uploads N              unfinished uploads (64)
  --retain-jobs-days N         finished jobs are deleted after this (0 = never)
  --retain-workers-days N      lost workers are forgotten after this (30; 0 = never)
  --retain-events-days N       what happened is forgotten after this (90; 0 = never)
  --watch-heartbeat-seconds N  of quiet watch streams (15)
  --json-log                   log lines as JSON
  --in-memory                  keep no database (for tests)
)";

int Fail(const absl::Status& status) {
  std::cerr << "nibble-server: " << status.message() << "\n";
  return status.code() == absl::StatusCode::kInvalidArgument ? 2 : 1;
}

std::string DefaultDataDir() {
  const char* state = std::getenv("XDG_DATA_HOME");
  const char* home = std::getenv("HOME");
  const std::string root = state ? state : JoinPath(home ? home : "/var/lib", ".local/share");
  return JoinPath(root, "nibble/server");
}

// "research=4:2:96": weight 4, at most 2 attempts and 96 GiB.
absl::Status ReadProject(const std::string& text, core::CoreOptions* core) {
  const auto bad = [&] {
    return Error::Field(Reason::kSpecInvalid, "--project",
                        absl::StrCat("is \"", text, "\"; must be NAME=WEIGHT[:JOBS[:GIB]] with a "
                                     "weight of 1 to 1000"))
        .ToStatus();
  };
  const size_t equals = text.find('=');
  if (equals == std::string::npos || !IsValidId(text.substr(0, equals))) return bad();
  const std::vector<std::string> parts = absl::StrSplit(text.substr(equals + 1), ':');
  int64_t numbers[3] = {1, 0, 0};
  if (parts.size() > 3) return bad();
  for (size_t i = 0; i < parts.size(); ++i) {
    if (!absl::SimpleAtoi(parts[i], &numbers[i]) || numbers[i] < 0 || numbers[i] > 1'000'000)
      return bad();
  }
  if (numbers[0] < 1 || numbers[0] > 1'000) return bad();
  core::ProjectPolicy& project = core->projects[text.substr(0, equals)];
  project.weight = static_cast<int32_t>(numbers[0]);
  project.quota_jobs = static_cast<int32_t>(numbers[1]);
  project.quota_bytes = numbers[2] << 30;
  return absl::OkStatus();
}

ServerOptions ReadServerOptions(Flags& flags) {
  constexpr int64_t kSecondUs = 1'000'000;
  ServerOptions options;
  options.data_dir = flags.Text("data-dir", DefaultDataDir());
  options.listen = flags.Text("listen", options.listen);
  options.http_listen = flags.Text("http-listen", options.http_listen);
  options.model_root = flags.Text("model-root");
  options.tls_cert = flags.Text("tls-cert");
  options.tls_key = flags.Text("tls-key");
  options.client_ca = flags.Text("client-ca");
  options.reflection = flags.Switch("reflection");
  options.in_memory = flags.Switch("in-memory");
  const int64_t lease_us = flags.Integer("lease-seconds", 120, 2, 3600) * kSecondUs;
  SetLease(lease_us, &options.core);
  options.core.max_attempts_per_device =
      static_cast<int32_t>(flags.Integer("jobs-per-device", 8, 1, 256));
  options.core.max_load_milli =
      static_cast<int32_t>(flags.Integer("load-per-device", 800, 100, 25'600)) * 10;
  options.tick_us = std::min<int64_t>(kSecondUs, lease_us / 10);
  const int64_t linger = flags.Integer("metrics-job-linger", 300, 0, 86'400);
  options.meter.job_linger_us =
      flags.Integer("metrics-job-linger-seconds", linger, 0, 86'400) * kSecondUs;
  options.meter.max_job_series =
      static_cast<int32_t>(flags.Integer("metrics-max-job-series", 100, 0, 10'000));
  options.blobs.min_free_bytes = flags.Integer("min-free-mb", 512, 0, 1 << 30) << 20;
  options.blobs.max_uploads = static_cast<int32_t>(flags.Integer("max-uploads", 64, 1, 10'000));
  options.retain_events_us = flags.Integer("retain-events-days", 90, 0, 36'500) * 86'400 * kSecondUs;
  options.retain_workers_us = flags.Integer("retain-workers-days", 30, 0, 36'500) * 86'400 * kSecondUs;
  options.retain_jobs_us = flags.Integer("retain-jobs-days", 0, 0, 36'500) * 86'400 * kSecondUs;
  options.heartbeat_us = flags.Integer("watch-heartbeat-seconds", 15, 1, 3600) * kSecondUs;
  return options;
}

int Serve(Flags& flags) {
  ServerOptions options = ReadServerOptions(flags);
  const bool json_log = flags.Switch("json-log");
  if (!flags.words().empty()) {
    return Fail(Error(Reason::kSpecInvalid,
                      absl::StrCat("\"", flags.words()[0], "\" is no command; see --help")));
  }
  for (const std::string& project : flags.Texts("project")) {
    if (absl::Status status = ReadProject(project, &options.core); !status.ok()) return Fail(status);
  }
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  InitLog("nibble-server", json_log);
  // Blocked here and so in every thread: they are waited for below. A full pipe or file is an error code.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  if (!OutlivesTerminal()) sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // The database is lost: what runs now must not answer anybody. 74 is EX_IOERR.
  options.on_fatal = [] { std::_Exit(74); };
  auto server = StartServer(std::move(options));
  if (!server.ok()) {
    // Flags that cannot be read are 2, for good. A port that is taken or a disk that is full may be
    // free next time.
    (void)Fail(server.status());
    return 1;
  }
  TellSupervisor("READY=1");
  int signal = 0;
  sigwait(&signals, &signal);
  TellSupervisor("STOPPING=1");
  // A second one ends the process at once: what was acknowledged is on disk.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  (*server)->Stop(/*grace_us=*/5'000'000);
  server->reset();
  return 0;
}

int InitTlsCommand(Flags& flags) {
  const std::string directory = JoinPath(flags.Text("data-dir", DefaultDataDir()), "tls");
  const auto hosts = flags.Texts("host");
  const auto clients = flags.Texts("client");
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  if (!hosts.empty() || clients.empty()) {
    if (absl::Status status = InitTls(directory, hosts); !status.ok()) return Fail(status);
    std::cout << "wrote " << directory << "/ca.crt, server.crt, server.key\nserve with --tls-cert "
              << directory << "/server.crt --tls-key " << directory
              << "/server.key; clients trust ca.crt\n"
              << "the certificate is for " << absl::StrJoin(hosts, ", ")
              << ", and no other name or address\n";
  }
  for (const std::string& client : clients) {
    const size_t colon = client.find(':');
    auto role = RoleFromName(client.substr(0, colon));
    if (!role.ok() || colon == std::string::npos) {
      return Fail(Error::Field(Reason::kSpecInvalid, "--client",
                               "must be ROLE:NAME or ROLE:PROJECT/NAME, e.g. worker:w1"));
    }
    const auto stem = IssueClientCertificate(directory, *role, client.substr(colon + 1));
    if (!stem.ok()) return Fail(stem.status());
    std::cout << "wrote " << directory << "/" << *stem << ".crt and .key\n";
  }
  return 0;
}

std::string Day(int64_t unix_us) {
  if (unix_us == 0) return "never";
  const std::time_t seconds = static_cast<std::time_t>(unix_us / 1'000'000);
  struct tm utc;
  gmtime_r(&seconds, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

int TokenCommand(Flags& flags) {
  const std::string data_dir = flags.Text("data-dir", DefaultDataDir());
  const std::string name = flags.Text("name", "default");
  const std::string role_name = flags.Text("role", "client");
  const int64_t days = flags.Integer("expires-days", 0, 0, 36'500);
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  const auto& words = flags.words();
  const std::string verb = words.size() > 1 ? words[1] : "";
  if (absl::Status status = MakeDirs(data_dir); !status.ok()) return Fail(status);
  TokenFile tokens(JoinPath(data_dir, "tokens.json"));
  if (absl::Status status = tokens.Refresh(); !status.ok()) return Fail(status);
  const int64_t now_us = RealClock::Get().NowUnixUs();
  if (verb == "create" && words.size() == 2) {
    const auto role = RoleFromName(role_name);
    if (!role.ok()) return Fail(role.status());
    const auto token = tokens.Create(name, *role, days == 0 ? 0 : now_us + days * 86'400'000'000, now_us);
    if (!token.ok()) return Fail(token.status());
    std::cerr << "this is shown once; keep it like a password\n";
    std::cout << *token << "\n";
    return 0;
  }
  if (verb == "ls" && words.size() == 2) {
    std::printf("%-10s %-20s %-8s %-12s %s\n", "ID", "NAME", "ROLE", "CREATED", "EXPIRES");
    for (const TokenRecord& record : tokens.List()) {
      std::printf("%-10s %-20s %-8s %-12s %s\n", record.id.c_str(), record.name.c_str(),
                  std::string(RoleName(record.role)).c_str(), Day(record.create_unix_us).c_str(),
                  Day(record.expire_unix_us).c_str());
    }
    return 0;
  }
  if (verb == "revoke" && words.size() == 3) {
    if (absl::Status status = tokens.Revoke(words[2]); !status.ok()) return Fail(status);
    std::cout << "revoked " << words[2] << "\n";
    return 0;
  }
  return Fail(Error(Reason::kSpecInvalid, "token wants create, ls, or revoke ID; see --help"));
}

int BackupCommand(Flags& flags) {
  const std::string data_dir = flags.Text("data-dir", DefaultDataDir());
  const std::string to = flags.Text("to");
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  if (absl::Status status = Backup(data_dir, to); !status.ok()) return Fail(status);
  std::cout << "backed up to " << to << "\n" << WhatIsIn(to) << "\n";
  return 0;
}

int RestoreCommand(Flags& flags) {
  const std::string data_dir = flags.Text("data-dir", DefaultDataDir());
  const std::string from = flags.Text("from");
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  if (IsHalfRestored(data_dir)) {
    std::cout << "a restore into " << data_dir
              << " was cut off; blobs that are there stay, the rest is copied anew\n";
  }
  if (absl::Status status = Restore(from, data_dir); !status.ok()) return Fail(status);
  std::cout << "restored to " << data_dir << "; attempts that ran when the backup was made start again\n"
            << WhatIsIn(data_dir) << "\n";
  return 0;
}

int VerifyCommand(Flags& flags) {
  const std::string data_dir = flags.Text("data-dir", DefaultDataDir());
  if (absl::Status status = flags.Check(); !status.ok()) return Fail(status);
  const auto report = VerifyBlobs(data_dir);
  if (!report.ok()) return Fail(report.status());
  for (const DamagedBlob& blob : report->damaged) {
    std::cout << (blob.missing ? "missing " : "damaged ") << blob.sha256
              << (blob.used_by.empty() ? ", of nothing" : ", of ")
              << absl::StrJoin(blob.used_by, ", ") << "\n";
  }
  std::cout << report->blobs << " blobs, " << report->bytes << " bytes, " << report->damaged.size()
            << " damaged or missing\n";
  for (const std::string& problem : report->tls_problems) std::cout << "tls: " << problem << "\n";
  if (report->damaged.empty()) return report->tls_problems.empty() ? 0 : 1;
  std::cout << "damaged ones were moved to " << data_dir
            << "/blobs/damaged; send data sets and models again (nibble "
            << "dataset push, nibble model register), and they are whole; a job with a damaged "
               "checkpoint goes on from "
            << "the one before\n";
  return 1;
}

int Main(int argc, char** argv) {
  KeepOpenSsl();
  Flags flags(argc, argv);
  if (flags.Switch("help")) {
    std::cout << kHelp;
    return 0;
  }
  const std::string command = flags.words().empty() ? "" : flags.words()[0];
  if (flags.Switch("version") || command == "version") {
    std::cout << "nibble-server " NIBBLE_VERSION "\n";
    return 0;
  }
  if (command == "init-tls") return InitTlsCommand(flags);
  if (command == "token") return TokenCommand(flags);
  if (command == "backup") return BackupCommand(flags);
  if (command == "restore") return RestoreCommand(flags);
  if (command == "verify") return VerifyCommand(flags);
  return Serve(flags);
}

}  // namespace
}  // namespace nibble::server

int main(int argc, char** argv) { return nibble::server::Main(argc, argv); }
