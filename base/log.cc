#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>
#include <memory>

namespace nibble {
namespace {

std::atomic<int64_t> g_counts[4];
std::atomic<bool> g_json{false};

std::shared_ptr<spdlog::logger>& Logger() {
  static auto logger = [] {
    auto made = std::make_shared<spdlog::logger>("nibble",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %L %n %v");
    return made;
  }();
  return logger;
}

void AppendJsonString(std::string& out, std::string_view text) {
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      static constexpr char kDigits[] = "0123456789abcdef";
      out += "\\u00";
      out += kDigits[(c >> 4) & 15];
      out += kDigits[c & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void AppendField(std::string& line, std::string_view key, const std::string& value, bool json) {
  if (json) {
    line += ',';
    AppendJsonString(line, key);
    line += ':';
    AppendJsonString(line, value);
    return;
  }
  line += ' ';
  line.append(key);
  line += '=';
  if (value.empty() || value.find_first_of(" \"\n\t=") != std::string::npos) {
    AppendJsonString(line, value);
  } else {
    line += value;
  }
}

}  // namespace

void InitLog(std::string_view program, bool json) {
  auto made = std::make_shared<spdlog::logger>(std::string(program),
                                               std::make_shared<spdlog::sinks::stderr_sink_mt>());
  g_json = json;
  made->set_pattern(json ? "{\"time\":\"%Y-%m-%dT%H:%M:%S.%e%z\",\"level\":\"%l\",\"program\":\"%n\",%v}"
                         : "%Y-%m-%dT%H:%M:%S.%e%z %L %n %v");
  const char* given = std::getenv("NIBBLE_LOG");
  const std::string_view level = given == nullptr ? "" : given;
  made->set_level(level == "debug"     ? spdlog::level::debug
                  : level == "warning" ? spdlog::level::warn
                                       : spdlog::level::info);
  made->flush_on(spdlog::level::info);
  Logger() = std::move(made);
}

void Log(LogLevel level, std::string_view event, LogFields fields) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  const int index = static_cast<int>(level);
  ++g_counts[index];
  if (!Logger()->should_log(kLevels[index])) return;
  const bool json = g_json;
  std::string line;
  if (json) {
    line = "\"event\":";
    AppendJsonString(line, event);
  } else {
    line = event;
  }
  for (const auto& [key, value] : fields) AppendField(line, key, value.text, json);
  Logger()->log(kLevels[index], "{}", line);
}

int64_t LogCount(LogLevel level) { return g_counts[static_cast<int>(level)]; }

}  // namespace nibble
