#include "client/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/outside_text.h"
#include "base/status.h"

namespace nibble::client {
namespace {

// Leaves yaml-cpp's parser at the first fault; never crosses ParseYaml.
struct Refusal {
  std::string message;
  YAML::Mark mark;
};

bool IsNullText(std::string_view text) {
  return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

int CountValues(const Yaml& value) {
  int count = 1;
  for (const Yaml& item : value.items) count += CountValues(item);
  for (const auto& [key, field] : value.fields) count += CountValues(field);
  return count;
}

int DepthOf(const Yaml& value) {
  int depth = 0;
  for (const Yaml& item : value.items) depth = std::max(depth, DepthOf(item));
  for (const auto& [key, field] : value.fields) depth = std::max(depth, DepthOf(field));
  return depth + 1;
}

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const YamlLimits& limits) : limits_(limits) {}
  Yaml TakeRoot() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (seen_document_) throw Refusal{"a recipe is one document; found a second", mark};
    seen_document_ = true;
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Add(At(Yaml::Kind::kNull, mark), mark, anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw Refusal{"an alias inside its own anchor", mark};
    Count(CountValues(found->second) - 1, mark);
    CheckDepth(DepthOf(found->second), mark);
    Add(found->second, mark, 0);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (!IsValidUtf8(value)) throw Refusal{"bytes that are not UTF-8", mark};
    // yaml-cpp gives plain scalars the tag "?", quoted ones "!".
    static constexpr std::string_view kCore = "tag:yaml.org,2002:";
    const bool quoted = tag == "!" || tag == std::string(kCore) + "str";
    const bool core =
        tag.rfind(kCore, 0) == 0 && tag.find_first_of("/:.", kCore.size()) == std::string::npos;
    if (!quoted && tag != "?" && !tag.empty() && !core) {
      throw Refusal{absl::StrCat("the tag ", tag, " is not supported"), mark};
    }
    Yaml scalar = At(!quoted && IsNullText(value) ? Yaml::Kind::kNull : Yaml::Kind::kScalar, mark);
    scalar.text = value;
    scalar.quoted = quoted;
    Add(std::move(scalar), mark, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(At(Yaml::Kind::kList, mark), mark, anchor);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(At(Yaml::Kind::kMap, mark), mark, anchor);
  }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    Yaml value;
    YAML::anchor_t anchor;
    YAML::Mark mark;
    bool has_key = false;
    std::string key;
  };

  static Yaml At(Yaml::Kind kind, const YAML::Mark& mark) {
    Yaml value;
    value.kind = kind;
    value.line = mark.line + 1;
    value.column = mark.column + 1;
    return value;
  }
  void Count(int more, const YAML::Mark& mark) {
    values_ += more;
    if (values_ > limits_.max_values) {
      throw Refusal{absl::StrCat("more than ", limits_.max_values,
                                 " values, aliases expanded; a recipe needs far fewer"),
                    mark};
    }
  }
  void CheckDepth(int below, const YAML::Mark& mark) {
    if (static_cast<int>(frames_.size()) + below > limits_.max_depth) {
      throw Refusal{absl::StrCat("nested deeper than ", limits_.max_depth, " levels"), mark};
    }
  }
  void Open(Yaml value, const YAML::Mark& mark, YAML::anchor_t anchor) {
    CheckDepth(1, mark);
    if (!frames_.empty() && frames_.back().value.IsMap() && !frames_.back().has_key) {
      throw Refusal{"a key must be plain text", mark};
    }
    frames_.push_back({std::move(value), anchor, mark});
  }
  void Close() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    Add(std::move(frame.value), frame.mark, frame.anchor);
  }
  void Add(Yaml value, const YAML::Mark& mark, YAML::anchor_t anchor) {
    Count(1, mark);
    if (anchor) anchors_[anchor] = value;
    if (frames_.empty()) {
      root_ = std::move(value);
      return;
    }
    Frame& parent = frames_.back();
    if (parent.value.IsList()) {
      parent.value.items.push_back(std::move(value));
    } else if (!parent.has_key) {
      SetKey(parent, value, mark);
    } else {
      parent.has_key = false;
      parent.value.fields.emplace_back(std::move(parent.key), std::move(value));
    }
  }
  void SetKey(Frame& parent, const Yaml& key, const YAML::Mark& mark) {
    if (!key.IsScalar()) throw Refusal{"a key must be plain text", mark};
    if (key.text == "<<") {
      throw Refusal{"merge keys (<<) are not supported; write the keys out", mark};
    }
    if (parent.value.Find(key.text)) {
      throw Refusal{absl::StrCat("the key ", key.text, " stands twice"), mark};
    }
    parent.key = key.text;
    parent.has_key = true;
  }

  const YamlLimits limits_;
  Yaml root_;
  bool seen_document_ = false;
  int values_ = 0;
  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, Yaml> anchors_;
};

absl::Status At(const std::string& source, int line, int column, const std::string& message) {
  return Error(Reason::kSpecInvalid, absl::StrCat(source, ":", line, ":", column, ": ", message))
      .ToStatus();
}

// One step of an override path: a key, or an index into a list.
struct PathStep {
  std::string key;
  int index = -1;
};

absl::StatusOr<std::vector<PathStep>> SplitPath(std::string_view path) {
  constexpr int kMaxIndex = 1000;
  const auto bad = [&] {
    return Error(Reason::kSpecInvalid,
                 absl::StrCat("override \"", std::string(path.substr(0, 100)),
                              "\": expected key=value with a key like lora_r or datasets[0].path"))
        .ToStatus();
  };
  std::vector<PathStep> steps;
  size_t i = 0;
  while (i < path.size()) {
    if (path[i] == '[') {
      const size_t end = path.find(']', i);
      if (end == std::string_view::npos || end == i + 1 || end - i > 5) return bad();
      int index = 0;
      for (size_t j = i + 1; j < end; ++j) {
        if (!std::isdigit(static_cast<unsigned char>(path[j]))) return bad();
        index = index * 10 + (path[j] - '0');
      }
      if (steps.empty() || index > kMaxIndex) return bad();
      steps.push_back({"", index});
      i = end + 1;
      continue;
    }
    if (path[i] == '.') {
      if (steps.empty()) return bad();
      ++i;
    }
    const size_t end = std::min(path.find_first_of(".[", i), path.size());
    if (end == i) return bad();
    steps.push_back({std::string(path.substr(i, end - i)), -1});
    i = end;
  }
  if (steps.empty()) return bad();
  return steps;
}

Yaml& Descend(Yaml& at, const PathStep& step) {
  if (step.index >= 0) {
    if (!at.IsList()) at = Yaml{Yaml::Kind::kList};
    if (at.items.size() <= static_cast<size_t>(step.index)) {
      at.items.resize(static_cast<size_t>(step.index) + 1);
    }
    return at.items[static_cast<size_t>(step.index)];
  }
  if (!at.IsMap()) at = Yaml{Yaml::Kind::kMap};
  for (auto& [key, value] : at.fields) {
    if (key == step.key) return value;
  }
  at.fields.emplace_back(step.key, Yaml{});
  return at.fields.back().second;
}

void ForgetPosition(Yaml& value) {
  value.line = 0;
  value.column = 0;
  for (Yaml& item : value.items) ForgetPosition(item);
  for (auto& [key, field] : value.fields) ForgetPosition(field);
}

}  // namespace

const Yaml* Yaml::Find(std::string_view key) const {
  for (const auto& [name, value] : fields) {
    if (name == key) return &value;
  }
  return nullptr;
}

bool Yaml::IsEmpty() const {
  switch (kind) {
    case Kind::kNull:
      return true;
    case Kind::kScalar:
      return text.empty();
    case Kind::kList:
      return std::all_of(items.begin(), items.end(), [](const Yaml& y) { return y.IsEmpty(); });
    case Kind::kMap:
      return std::all_of(fields.begin(), fields.end(),
                         [](const auto& f) { return f.second.IsEmpty(); });
  }
  return true;
}

absl::StatusOr<Yaml> ParseYaml(std::string_view text, const std::string& source,
                               const YamlLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return Error(Reason::kRequestTooLarge,
                 absl::StrCat(source, ": ", text.size(), " bytes; a recipe has at most ",
                              limits.max_bytes))
        .ToStatus();
  }
  TreeBuilder builder(limits);
  try {
    std::istringstream in{std::string(text)};
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const Refusal& refusal) {
    return At(source, refusal.mark.line + 1, refusal.mark.column + 1, refusal.message);
  } catch (const YAML::Exception& e) {
    return At(source, e.mark.line + 1, e.mark.column + 1, absl::StrCat("not YAML: ", e.msg));
  }
  return builder.TakeRoot();
}

absl::Status ApplyOverride(Yaml& root, std::string_view path, std::string_view value) {
  ASSIGN_OR_RETURN(const std::vector<PathStep> steps, SplitPath(path));
  ASSIGN_OR_RETURN(Yaml parsed, ParseYaml(value, absl::StrCat("override ", std::string(path))));
  ForgetPosition(parsed);
  Yaml* at = &root;
  for (const PathStep& step : steps) at = &Descend(*at, step);
  *at = std::move(parsed);
  return absl::OkStatus();
}

}  // namespace nibble::client
