// One line per fact: a noun.verb name and key=value fields.
//
// ERROR: someone must look. WARNING: we recovered. INFO: one line per life-cycle step; NIBBLE_LOG=warning
// leaves it out. DEBUG: with NIBBLE_LOG=debug. Never user text, training text, tokens, secrets. Thread-safe.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace nibble {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// A field's value; numbers and text convert.
struct LogValue {
  std::string text;
  LogValue(std::string_view s) : text(s) {}          // NOLINT
  LogValue(const std::string& s) : text(s) {}        // NOLINT
  LogValue(const char* s) : text(s) {}               // NOLINT
  LogValue(int64_t v) : text(std::to_string(v)) {}   // NOLINT
  LogValue(uint64_t v) : text(std::to_string(v)) {}  // NOLINT
  LogValue(int v) : text(std::to_string(v)) {}       // NOLINT
  LogValue(double v) : text(std::to_string(v)) {}    // NOLINT
  LogValue(bool v) : text(v ? "true" : "false") {}   // NOLINT
};
using LogFields = std::initializer_list<std::pair<std::string_view, LogValue>>;

// Once, at the start of main: the program's name in every line; "text" or "json" lines to stderr.
void InitLog(std::string_view program, bool json = false);
void Log(LogLevel level, std::string_view event, LogFields fields = {});
inline void LogInfo(std::string_view event, LogFields f = {}) { Log(LogLevel::kInfo, event, f); }
inline void LogWarning(std::string_view event, LogFields f = {}) { Log(LogLevel::kWarning, event, f); }
inline void LogError(std::string_view event, LogFields f = {}) { Log(LogLevel::kError, event, f); }
// How many lines of a level were written; for nibble_log_messages_total.
int64_t LogCount(LogLevel level);

}  // namespace nibble
