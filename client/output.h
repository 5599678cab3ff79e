// What the command prints: where text goes, in which form, and with which exit code it ends.
//
// Results go to stdout, everything said about the work to stderr. JSON is protobuf's own mapping,
// so it is as stable as the protos. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace google::protobuf {
class Message;
}

namespace nibble::client {

enum ExitCode {
  kExitOk = 0,
  kExitError = 1,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitDenied = 4,
  kExitInvalid = 5,
  kExitUnreachable = 6,
  kExitJobFailed = 10,
  kExitJobCancelled = 11,
  kExitTimeout = 12,
  kExitInterrupted = 130,
};
int ExitCodeOf(const absl::Status& status);
int ExitCodeOf(v1::JobState state);

enum class Form { kTable, kJson, kYaml, kName };

struct Terminal {
  Form form = Form::kTable;
  bool quiet = false;
  Style style;               // of stdout
  bool live = false;         // stdout is a terminal that understands cursor movements
  bool live_errors = false;  // and stderr
  int columns = 80;
};
// From the descriptors, TERM, NO_COLOR, COLUMNS and the locale.
Terminal DetectTerminal(bool no_color);

void PrintOut(std::string_view text);                             // stdout, as it is
void PrintNote(const Terminal& terminal, std::string_view line);  // stderr, unless quiet
// The message, the fields it names, and what to do about it; returns the exit code.
int PrintError(const Terminal& terminal, const absl::Status& status);

std::string ToJson(const google::protobuf::Message& message);
std::string ToYaml(const std::string& json);
// JSON, or YAML of it, is what is asked for.
bool WantsJson(const Terminal& terminal);
// Prints as one of them; false, and nothing printed, when the form asks for something else.
bool PrintJson(const Terminal& terminal, const std::string& json);
bool PrintMessage(const Terminal& terminal, const google::protobuf::Message& message);

// Without the library's own words where it found nobody: "cannot reach 127.0.0.1:7070: Connection refused".
std::string PlainConnectionError(std::string_view why);
// What to look at when there is no connection, by what the library says about it.
std::string ConnectionHint(std::string_view why);
// "job-1" -> "jobs/job-1"; a full name stays.
std::string FullName(std::string_view collection, std::string_view text);
// "jobs/job-1" -> "job-1".
std::string ShortName(std::string_view name);

std::string StateText(const Style& style, v1::JobState state);
// "3m05s ago"; "-" for an unset time.
std::string AgeText(const google::protobuf::Timestamp& time, int64_t now_us);
int64_t ToUnixUs(const google::protobuf::Timestamp& time);
// "2026-03-01 12:30:05", local time.
std::string TimeText(int64_t unix_us);
// "12:30:05".
std::string ClockText(int64_t unix_us);
// "now", "14:20:00", "2026-03-01 12:30:05": what is needed to tell it from now.
std::string WhenText(const google::protobuf::Timestamp& time, int64_t now_unix_us);

// One line on stderr that shows bytes moving: redrawn in place on a terminal, else said once (not at all with
// `only_live`).
class ByteProgress {
 public:
  ByteProgress(const Terminal& terminal, std::string label, bool only_live = false)
      : terminal_(terminal), label_(std::move(label)), only_live_(only_live) {}
  ~ByteProgress();
  void Show(int64_t done, int64_t total);

 private:
  const Terminal& terminal_;
  const std::string label_;
  const bool only_live_;
  bool drawn_ = false;
  int64_t last_us_ = 0;
};

// On a terminal a line on stderr that says what is waited for, gone when it is over.
class Transient {
 public:
  Transient(const Terminal& terminal, const std::string& line);
  ~Transient();
  Transient(const Transient&) = delete;
  Transient& operator=(const Transient&) = delete;

 private:
  const bool drawn_;
};

}  // namespace nibble::client
