#include "client/output.h"

#include <google/protobuf/util/json_util.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <yaml-cpp/emitter.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/error.h"

namespace nibble::client {
namespace {

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

bool HasUtf8Locale() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string value = Env(name);
    if (value.empty()) continue;
    return value.find("UTF-8") != std::string::npos || value.find("utf8") != std::string::npos ||
           value.find("UTF8") != std::string::npos;
  }
  // No locale at all is what containers have; every terminal in use shows UTF-8.
  return true;
}

void Emit(YAML::Emitter& out, const nlohmann::ordered_json& value) {
  if (value.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, field] : value.items()) {
      out << YAML::Key << key << YAML::Value;
      Emit(out, field);
    }
    out << YAML::EndMap;
  } else if (value.is_array()) {
    out << YAML::BeginSeq;
    for (const auto& item : value) Emit(out, item);
    out << YAML::EndSeq;
  } else if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    // Quoted whenever a reader might take it for something else than text.
    const bool plain = !text.empty() &&
                       text.find_first_not_of("0123456789.+-eE_") != std::string::npos &&
                       text != "true" && text != "false" && text != "null";
    if (plain) {
      out << text;
    } else {
      out << YAML::DoubleQuoted << text;
    }
  } else {
    out << value.dump();
  }
}

// Messages may have lines of their own.
std::string PrintableLines(absl::string_view text) {
  std::vector<std::string> lines;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    lines.push_back(Printable(std::string_view(line.data(), line.size())));
  }
  return absl::StrJoin(lines, "\n");
}

// Lists also show what a thing is called and which file it was; what is asked for by one of those is told the
// column.
std::string ListHint(const absl::Status& status) {
  if (StatusReason(status) != Reason::kNameInvalid) return "";
  for (const FieldViolation& v : StatusViolations(status)) {
    for (const char* thing : {"dataset", "model", "adapter", "worker"}) {
      if (v.description.find(absl::StrCat("must be ", thing, "s/{id}")) == std::string::npos) continue;
      return absl::StrCat("`nibble ", thing, " ls` lists them; the first column is the name.\n");
    }
  }
  return "";
}

}  // namespace

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return kExitDenied;
    case absl::StatusCode::kInvalidArgument:
      return kExitInvalid;
    case absl::StatusCode::kUnavailable:
      // It answers, and says that its database does not: no address mends that.
      return StatusReason(status) == Reason::kStoreUnavailable ? kExitError : kExitUnreachable;
    case absl::StatusCode::kUnimplemented:
      return kExitUnreachable;
    case absl::StatusCode::kDeadlineExceeded:
      return kExitTimeout;
    default:
      break;
  }
  switch (StatusReason(status)) {
    case Reason::kUnsupportedArchitecture:
    case Reason::kTokenizerUnsupported:
    case Reason::kModelFileInvalid:
    case Reason::kNoSupervisedTokens:
    case Reason::kExceedsDeviceMemory:
      return kExitInvalid;
    default:
      return kExitError;
  }
}

int ExitCodeOf(v1::JobState state) {
  switch (state) {
    case v1::FAILED:
      return kExitJobFailed;
    case v1::CANCELLED:
      return kExitJobCancelled;
    default:
      return kExitOk;
  }
}

Terminal DetectTerminal(bool no_color) {
  Terminal terminal;
  const bool dumb = Env("TERM") == "dumb";
  terminal.live = isatty(STDOUT_FILENO) && !dumb;
  terminal.live_errors = isatty(STDERR_FILENO) && !dumb;
  terminal.style.color = terminal.live && !no_color && Env("NO_COLOR").empty();
  terminal.style.unicode = HasUtf8Locale();
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    terminal.columns = size.ws_col;
  } else if (const int columns = std::atoi(Env("COLUMNS").c_str()); columns > 0) {
    terminal.columns = columns;
  }
  if (isatty(STDOUT_FILENO)) terminal.style.columns = terminal.columns;
  return terminal;
}

void PrintOut(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  // A reader that has gone away ends us by SIGPIPE; this is a full disk. Half a result is none.
  std::fprintf(stderr, "error: cannot write the output: %s\n", std::strerror(errno));
  std::_Exit(kExitError);
}

void PrintNote(const Terminal& terminal, std::string_view line) {
  if (terminal.quiet) return;
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fputc('\n', stderr);
}

std::string PlainConnectionError(std::string_view why) {
  // failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:7070: Failed to connect to ...
  const std::vector<std::string> parts = absl::StrSplit(std::string(why), absl::MaxSplits(": ", 3));
  constexpr std::string_view kNoName = "DNS resolution failed for ";
  // DNS resolution failed for box0:7070: C-ares status is not ARES_SUCCESS ...: Domain name not found
  if (why.starts_with(kNoName) && parts.size() > 1)
    return absl::StrCat("cannot find ", parts[0].substr(kNoName.size()), ": ",
                        std::string(why.substr(why.rfind(": ") + 2)));
  if (parts.size() < 4 || parts[0] != "failed to connect to all addresses; last error")
    return std::string(why);
  std::string address = absl::StrReplaceAll(parts[2], {{"%5B", "["}, {"%5D", "]"}});
  for (const char* family : {"ipv4:", "ipv6:"}) {
    if (address.starts_with(family)) address.erase(0, 5);
  }
  return absl::StrCat("cannot reach ", address, ": ",
                      absl::StripPrefix(parts[3], "Failed to connect to remote host: "));
}

std::string ConnectionHint(std::string_view why) {
  const auto says = [&](std::string_view words) {
    return why.find(words) != std::string_view::npos;
  };
  if (says("certificate verify failed")) {
    return "The server's certificate was not accepted: it has ended, or another authority signed "
           "it than --ca-file (or "
           "NIBBLE_CA_FILE) names. `openssl s_client -connect HOST:PORT` shows it.";
  }
  if (says("is not in peer certificate"))
    return "The server's certificate is for other names: use one of them in --server, or have it "
           "made for this one.";
  if (says("Socket closed") || says("wrong version number")) {
    return "Something answers there and hangs up: a server with TLS wants --ca-file or "
           "https://HOST:PORT, one without "
           "neither.";
  }
  return "Is a server running there? `nibble up` starts one on this machine; --server or "
         "NIBBLE_SERVER names another.";
}

int PrintError(const Terminal& terminal, const absl::Status& status) {
  Style style = terminal.style;
  style.color = style.color && terminal.live_errors;
  std::string message(status.message());
  if (absl::IsUnavailable(status)) message = PlainConnectionError(message);
  std::string text = absl::StrCat(Paint(style, Ink::kRed, "error:"), " ", PrintableLines(message), "\n");
  constexpr int kMostShown = 8;
  int others = 0;
  for (const FieldViolation& v : StatusViolations(status)) {
    // Messages made of violations already say them.
    if (status.message().find(v.description) != absl::string_view::npos) continue;
    if (++others > kMostShown) continue;
    absl::StrAppend(&text, "  ", v.field, ": ", PrintableLines(v.description), "\n");
  }
  if (others > kMostShown) {
    // Of a data set's rows the first are named and all are counted; one is in the message itself.
    int64_t rows = 0;
    const auto metadata = StatusMetadata(status);
    const auto counted = metadata.find("bad_rows");
    if (counted == metadata.end() || !absl::SimpleAtoi(counted->second, &rows)) rows = 0;
    absl::StrAppend(&text, "  and ", std::max<int64_t>(others, rows - 1) - kMostShown, " more\n");
  }
  if (absl::IsUnavailable(status) && StatusReason(status) == Reason::kUnspecified) {
    absl::StrAppend(&text, ConnectionHint(std::string(status.message())), "\n");
  } else if (absl::IsDeadlineExceeded(status) && StatusReason(status) == Reason::kUnspecified) {
    absl::StrAppend(&text,
                    "The server did not answer in time (--call-timeout): it is stopped, or very busy.\n");
  } else if (StatusReason(status) != Reason::kUnspecified) {
    if (absl::IsUnauthenticated(status))
      text += "Here a token is given with --token-file FILE, NIBBLE_TOKEN_FILE or NIBBLE_TOKEN.\n";
    absl::StrAppend(
        &text, ListHint(status),
        Paint(style, Ink::kDim, absl::StrCat("(", std::string(ReasonName(StatusReason(status))), ")")), "\n");
  }
  std::fputs(text.c_str(), stderr);
  return ExitCodeOf(status);
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : "{}\n";
}

std::string ToYaml(const std::string& json) {
  YAML::Emitter out;
  Emit(out, nlohmann::ordered_json::parse(json, nullptr, false));
  return absl::StrCat(out.c_str(), "\n");
}

bool WantsJson(const Terminal& terminal) {
  return terminal.form == Form::kJson || terminal.form == Form::kYaml;
}

bool PrintJson(const Terminal& terminal, const std::string& json) {
  if (WantsJson(terminal)) PrintOut(terminal.form == Form::kJson ? json : ToYaml(json));
  return WantsJson(terminal);
}

bool PrintMessage(const Terminal& terminal, const google::protobuf::Message& message) {
  return WantsJson(terminal) && PrintJson(terminal, ToJson(message));
}

std::string FullName(std::string_view collection, std::string_view text) {
  const std::string prefix = std::string(collection) + "/";
  if (text.substr(0, prefix.size()) == prefix) return std::string(text);
  return prefix + std::string(text);
}

std::string ShortName(std::string_view name) {
  const size_t slash = name.rfind('/');
  return std::string(slash == std::string_view::npos ? name : name.substr(slash + 1));
}

std::string StateText(const Style& style, v1::JobState state) {
  const std::string name =
      v1::JobState_IsValid(state) ? v1::JobState_Name(state) : absl::StrCat("STATE_", state);
  switch (state) {
    case v1::SUCCEEDED:
      return Paint(style, Ink::kGreen, name);
    case v1::FAILED:
      return Paint(style, Ink::kRed, name);
    case v1::RUNNING:
      return Paint(style, Ink::kBlue, name);
    case v1::CANCELLED:
    case v1::PAUSED:
      return Paint(style, Ink::kDim, name);
    default:
      return Paint(style, Ink::kYellow, name);
  }
}

int64_t ToUnixUs(const google::protobuf::Timestamp& time) {
  return time.seconds() * 1'000'000 + time.nanos() / 1000;
}

std::string AgeText(const google::protobuf::Timestamp& time, int64_t now_us) {
  if (time.seconds() == 0) return "-";
  return absl::StrCat(FormatDuration(std::max<int64_t>(0, (now_us - ToUnixUs(time)) / 1'000'000)),
                      " ago");
}

std::string TimeText(int64_t unix_us) {
  if (unix_us == 0) return "-";
  const time_t seconds = unix_us / 1'000'000;
  tm parts{};
  localtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &parts);
  return text;
}

std::string ClockText(int64_t unix_us) {
  const std::string text = TimeText(unix_us);
  const size_t space = text.find(' ');
  return space == std::string::npos ? text : text.substr(space + 1);
}

std::string WhenText(const google::protobuf::Timestamp& time, int64_t now_unix_us) {
  const int64_t us = ToUnixUs(time);
  if (us <= now_unix_us + 5'000'000) return "now";
  const bool today = us - now_unix_us < int64_t{20} * 3600 * 1'000'000;
  return today ? ClockText(us) : TimeText(us);
}

void ByteProgress::Show(int64_t done, int64_t total) {
  if (terminal_.quiet) return;
  if (!terminal_.live_errors) {
    if (!drawn_ && !only_live_)
      std::fprintf(stderr, "%s (%s)\n", Printable(label_).c_str(), FormatBytes(total).c_str());
    drawn_ = true;
    return;
  }
  const int64_t now_us = RealClock::Get().NowMonotonicUs();
  if (drawn_ && done < total && now_us - last_us_ < 100'000) return;
  last_us_ = now_us;
  drawn_ = true;
  const double fraction = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const std::string label = Printable(label_);
  const int width = std::clamp(terminal_.columns - DisplayWidth(label) - 28, 4, 20);
  const std::string line = absl::StrCat(label, "  ", Bar(fraction, width, terminal_.style), "  ",
                                        FormatBytes(done), " of ", FormatBytes(total));
  std::fprintf(stderr, "\r\x1b[2K%s", Ellipsize(line, terminal_.columns - 1, terminal_.style).c_str());
  std::fflush(stderr);
}

Transient::Transient(const Terminal& terminal, const std::string& line)
    : drawn_(terminal.live_errors && !terminal.quiet) {
  if (!drawn_) return;
  std::fputs(Ellipsize(Printable(line), terminal.columns - 1, terminal.style).c_str(), stderr);
}

Transient::~Transient() {
  if (drawn_) std::fputs("\r\x1b[2K", stderr);
}

ByteProgress::~ByteProgress() {
  if (drawn_ && terminal_.live_errors && !terminal_.quiet) std::fputs("\r\x1b[2K", stderr);
}

}  // namespace nibble::client
