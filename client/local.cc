#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "client/commands.h"

namespace nibble::client {
namespace {

int Become(const Globals& g, const std::string& binary, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), binary);
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  execv(binary.c_str(), argv.data());
  if (errno == ENOENT) {
    return PrintError(g.terminal, absl::NotFoundError(absl::StrCat(
                                      BaseName(binary), " is needed for this; it is not beside this program "
                                      "and not on PATH")));
  }
  return PrintError(g.terminal, ErrnoStatus(errno, "start " + binary));
}

// What was looked at: printed line by line, or at the end as one message.
class Findings {
 public:
  explicit Findings(const Globals& g) : g_(g) {}

  // `counts`: a bad one makes the whole bad.
  void Add(bool good, const std::string& what, const std::string& said, bool counts = true) {
    good_ &= good || !counts;
    checks_.push_back({{"what", what}, {"good", good}, {"said", said}});
    const Style& style = g_.terminal.style;
    const std::string mark = style.unicode ? (good ? "✓" : "✗") : (good ? "ok" : "!!");
    Show(Paint(style, good ? Ink::kGreen : Ink::kRed, mark), what, said);
  }
  // Neither good nor bad.
  void Note(const std::string& what, const std::string& said) {
    checks_.push_back({{"what", what}, {"good", true}, {"said", said}});
    Show(g_.terminal.style.unicode ? "-" : "--", what, said);
  }
  // The exit code: `bad` when something is.
  int End(int bad = kExitError) {
    const nlohmann::ordered_json report = {{"checks", checks_}, {"good", good_}};
    (void)PrintJson(g_.terminal,
                    report.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return good_ ? static_cast<int>(kExitOk) : bad;
  }

 private:
  void Show(const std::string& mark, const std::string& what, const std::string& said) {
    if (!WantsJson(g_.terminal)) PrintOut(absl::StrCat(mark, " ", what, "  ", said, "\n"));
  }

  const Globals& g_;
  nlohmann::ordered_json checks_ = nlohmann::ordered_json::array();
  bool good_ = true;
};

}  // namespace

std::string SiblingBinary(const std::string& name) {
  if (const auto self = RealPath("/proc/self/exe"); self.ok()) {
    const std::string beside = JoinPath(DirName(*self), name);
    if (FileExists(beside)) return beside;
  }
  const char* path = std::getenv("PATH");
  for (absl::string_view dir : absl::StrSplit(path ? path : "", ':', absl::SkipEmpty())) {
    const std::string candidate = JoinPath(std::string_view(dir.data(), dir.size()), name);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return name;
}

int EngineCommand(const Globals& g, const std::string& command, const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {command};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return Become(g, SiblingBinary("nibble-engine"), std::move(all));
}

int TokenCommand(const Globals& g, const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"token"};
  std::string data_dir = DataDir(g);
  for (size_t i = 0; i < arguments.size(); ++i) {
    // Our data directory holds the server's own.
    if (arguments[i] == "--data-dir" && i + 1 < arguments.size()) {
      data_dir = arguments[++i];
    } else {
      all.push_back(arguments[i]);
    }
  }
  all.insert(all.end(), {"--data-dir", ServerDir(data_dir)});
  return Become(g, SiblingBinary("nibble-server"), std::move(all));
}

int DoctorCommand(const Globals& g) {
  Findings findings(g);
  const auto check = [&](bool passed, const std::string& what, const std::string& said) {
    findings.Add(passed, what, said);
  };
  // Who works with a server elsewhere needs this binary alone.
  const bool elsewhere = !g.server.empty() || std::getenv("NIBBLE_SERVER") != nullptr;
  for (const auto& [name, needs] : {std::pair{"nibble-server", "`nibble up` and `nibble token` need it"},
                                   {"nibble-worker", "`nibble up` needs it"},
                                   {"nibble-engine", "`nibble generate`, `merge` and `up` need it"}}) {
    const std::string path = SiblingBinary(name);
    if (FileExists(path) || !elsewhere) {
      check(FileExists(path), name, FileExists(path) ? path : "not beside this binary and not on PATH");
    } else {
      findings.Note(name, absl::StrCat("not here; only ", needs));
    }
  }
  const std::string dir = DataDir(g);
  std::string existing = dir;  // where it will be made
  while (!IsDirectory(existing) && existing != DirName(existing)) existing = DirName(existing);
  if (const auto free = FreeDiskBytes(existing); free.ok()) {
    constexpr int64_t kWanted = int64_t{2} << 30;
    check(
        *free > kWanted, "disk",
        absl::StrCat(FormatBytes(*free), " free for ", dir,
                     *free > kWanted ? ""
                                     : absl::StrCat("; bases, data sets and checkpoints want more than ",
                                                    FormatBytes(kWanted),
                                                    "; --data-dir or NIBBLE_DATA_DIR names another place")));
  }
  const std::string server = FindServer(g);
  const auto client = Open(g);
  if (!client.ok()) {
    check(false, "server", std::string(client.status().message()));
    return findings.End(kExitUnreachable);
  }
  const auto workers = (*client)->ListWorkers();
  if (!workers.ok()) {
    const std::string why(workers.status().message());
    const bool away = absl::IsUnavailable(workers.status());
    check(false, "server",
          absl::StrCat(server, ": ", away ? PlainConnectionError(why) : why, away ? "\n    " : "",
                       away ? ConnectionHint(why) : ""));
    return findings.End(ExitCodeOf(workers.status()));
  }
  const std::string warning = Printable((*client)->warning());
  check(warning.empty(), "server", warning.empty() ? server : absl::StrCat(server, ": ", warning));
  int ready = 0, gone = 0;
  for (const auto& w : workers->workers()) {
    if (IsLongLost(w, RealClock::Get().NowUnixUs())) {
      ++gone;
      continue;
    }
    const bool alive = (w.state() == v1::IDLE || w.state() == v1::BUSY) && w.no_room().empty();
    ready += alive;
    for (const auto& d : w.devices()) {
      findings.Add(alive, "worker " + ShortName(w.name()),
                   absl::StrCat(v1::WorkerState_Name(w.state()), ", ", d.id(), " ", d.body(), ", ",
                                FormatBytes(d.capacity_bytes()),
                                w.no_room().empty() ? "" : absl::StrCat(", its disk is full: ", w.no_room()),
                                w.version() == NIBBLE_VERSION
                                    ? ""
                                    : absl::StrCat(", version ", w.version(), " (this is ",
                                                   NIBBLE_VERSION, ")")),
                   /*counts=*/false);
    }
  }
  check(ready > 0, "workers", absl::StrCat(ready, " ready of ", workers->workers_size() - gone));
  return findings.End();
}

}  // namespace nibble::client
