#include "engine/text/json.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/text/text.h"

namespace nibble::engine {
namespace {

constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr int kIndexDepth = 4;

// Where the parser puts what it read: its own document, or the caller's.
using Parse = std::function<simdjson::simdjson_result<simdjson::dom::element>()>;

absl::Status ParseWith(simdjson::dom::parser& parser, const Parse& parse, size_t bytes, int max_depth,
                       simdjson::dom::object& root,
                       const std::function<absl::Status(std::string_view)>& error) {
  simdjson::error_code code = parser.allocate(bytes, static_cast<size_t>(max_depth));
  if (code != simdjson::SUCCESS) return error(simdjson::error_message(code));
  simdjson::dom::element element;
  code = parse().get(element);
  if (code == simdjson::DEPTH_ERROR) {
    return error(absl::StrCat("it is nested deeper than ", max_depth, " levels"));
  }
  if (code != simdjson::SUCCESS) return error(simdjson::error_message(code));
  if (element.get(root) != simdjson::SUCCESS) return error("it is no JSON object");
  return absl::OkStatus();
}

}  // namespace

// The parser reads past the end, so it gets a padded copy (`true`).
absl::Status ParseObject(simdjson::dom::parser& parser, std::string_view text, int max_depth,
                         simdjson::dom::object& root,
                         const std::function<absl::Status(std::string_view)>& error) {
  const auto parse = [&] { return parser.parse(text.data(), text.size(), true); };
  return ParseWith(parser, parse, text.size(), max_depth, root, error);
}

absl::Status ParseObject(simdjson::dom::document& document, std::string_view text, int max_depth,
                         simdjson::dom::object& root,
                         const std::function<absl::Status(std::string_view)>& error) {
  simdjson::dom::parser parser;
  const auto parse = [&] {
    return parser.parse_into_document(document, text.data(), text.size(), true);
  };
  return ParseWith(parser, parse, text.size(), max_depth, root, error);
}

std::string JsonString(std::string_view text) {
  const std::string repaired = IsValidUtf8(text) ? std::string() : RepairUtf8(text);
  const std::string_view source = repaired.empty() ? text : std::string_view(repaired);
  std::string out = "\"";
  for (const char c : source) {
    const auto b = static_cast<uint8_t>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n' || c == '\t' || c == '\r' || c == '\b' || c == '\f') {
      out += '\\';
      out += c == '\n' ? 'n' : c == '\t' ? 't' : c == '\r' ? 'r' : c == '\b' ? 'b' : 'f';
    } else if (b < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", b);
      out += escaped;
    } else {
      out += c;
    }
  }
  out += '"';
  return out;
}

absl::StatusOr<std::map<std::string, std::string, std::less<>>> ReadShardIndex(
    const std::string& path) {
  const auto bad = [&](std::string_view what) -> absl::Status {
    return Error(Reason::kModelFileInvalid, absl::StrCat(path, ": ", View(what)))
        .With("file", path);
  };
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxIndexBytes));
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  RETURN_IF_ERROR(ParseObject(parser, text, kIndexDepth, root, bad));
  simdjson::dom::object weight_map;
  if (root["weight_map"].get(weight_map) != simdjson::SUCCESS) {
    return bad("weight_map is missing or no object");
  }
  std::map<std::string, std::string, std::less<>> shard_of;
  for (const auto field : weight_map) {
    std::string_view name;
    if (field.value.get(name) != simdjson::SUCCESS) {
      return bad(absl::StrCat("weight_map.", Quote(field.key), " is no string"));
    }
    if (name.empty() || name.size() > 255 || name.find('/') != std::string_view::npos ||
        name.find('\0') != std::string_view::npos || name == "." || name == "..") {
      return bad(absl::StrCat("weight_map.", Quote(field.key), " is ", Quote(name),
                              ", not the name of a file beside the index"));
    }
    if (!shard_of.emplace(field.key, name).second) {
      return bad(absl::StrCat("weight_map.", Quote(field.key), " is given twice"));
    }
  }
  if (shard_of.empty()) return bad("weight_map is empty");
  return shard_of;
}

}  // namespace nibble::engine
