#include "engine/text/tokenizer_steps.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace nibble::engine::tokenizer {
namespace {

// {"String": s} into `literal`, or {"Regex": r} into `regex`.
absl::Status ReadPattern(Fields& fields, std::string& literal, std::string& regex) {
  if (!fields.Has("pattern")) return Refuse(fields.where(), "lacks its pattern");
  ASSIGN_OR_RETURN(Fields pattern, ObjectAt(fields.where() + ".pattern", fields.Raw("pattern")));
  literal = pattern.Text("String");
  regex = pattern.Text("Regex");
  RETURN_IF_ERROR(pattern.status());
  if (literal.empty() == regex.empty()) {
    return Refuse(pattern.where(), "must hold either String or Regex");
  }
  return absl::OkStatus();
}

absl::StatusOr<NormalizeStep> ReadNormalizer(Fields& fields) {
  using Kind = NormalizeStep::Kind;
  const std::string type = fields.Text("type");
  NormalizeStep step;
  constexpr std::pair<std::string_view, NormalForm> kForms[] = {{"NFC", NormalForm::kNfc},
                                                                {"NFD", NormalForm::kNfd},
                                                                {"NFKC", NormalForm::kNfkc},
                                                                {"NFKD", NormalForm::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    step.form = form;
    return step;
  }
  if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.to = fields.Text("prepend");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    std::string regex;
    RETURN_IF_ERROR(ReadPattern(fields, step.from, regex));
    if (!regex.empty()) {
      return Refuse(fields.where(), absl::StrCat("replaces by the pattern ", Quote(regex, 200),
                                                 ", which is not supported"));
    }
    step.to = fields.Text("content");
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.left = fields.Flag("strip_left", true);
    step.right = fields.Flag("strip_right", true);
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

absl::StatusOr<Behavior> ReadBehavior(Fields& fields, std::string_view fallback) {
  constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext}};
  const std::string name = fields.Text("behavior", fallback);
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) return behavior;
  }
  return Refuse(fields.where(),
                absl::StrCat("has behavior ", Quote(name), ", which is not supported"));
}

absl::Status ReadSplit(Fields& fields, PreStep& step) {
  std::string regex;
  RETURN_IF_ERROR(ReadPattern(fields, step.literal, regex));
  if (!regex.empty()) {
    step.scanner = ScannerForPattern(regex);
    if (step.scanner == nullptr) {
      return Refuse(fields.where(), absl::StrCat("splits by the pattern ", Quote(regex, 400),
                                                 ", which is none of those Nibble knows"));
    }
  }
  ASSIGN_OR_RETURN(step.behavior, ReadBehavior(fields, "Isolated"));
  step.invert = fields.Flag("invert", false);
  return absl::OkStatus();
}

absl::Status ReadMetaspace(Fields& fields, PreStep& step) {
  step.change = PreStep::Change::kMetaspace;
  step.replacement = fields.Text("replacement", "\xE2\x96\x81");
  if (step.replacement.empty()) return Refuse(fields.where(), "has an empty replacement");
  const std::string scheme = fields.Text("prepend_scheme", "always");
  if (scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme == "never" || !fields.Flag("add_prefix_space", true)) {
    step.prepend = PrependScheme::kNever;
  } else if (scheme != "always") {
    return Refuse(fields.where(), absl::StrCat("has prepend_scheme ", Quote(scheme)));
  }
  step.split = fields.Flag("split", true);
  step.literal = step.replacement;
  step.behavior = Behavior::kMergedWithNext;
  return absl::OkStatus();
}

absl::StatusOr<PreStep> ReadPreStep(Fields& fields, bool& byte_level) {
  const std::string type = fields.Text("type");
  PreStep step;
  step.split = true;
  if (type == "ByteLevel") {
    byte_level = true;
    if (fields.Flag("add_prefix_space", true)) step.change = PreStep::Change::kPrefixSpace;
    step.split = fields.Flag("use_regex", true);
    step.scanner = ScanGpt2;
  } else if (type == "Split") {
    RETURN_IF_ERROR(ReadSplit(fields, step));
  } else if (type == "Digits") {
    step.scanner = ScanDigit;
    step.behavior =
        fields.Flag("individual_digits", false) ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Metaspace") {
    RETURN_IF_ERROR(ReadMetaspace(fields, step));
  } else if (type == "Punctuation") {
    step.scanner = ScanPunctuation;
    ASSIGN_OR_RETURN(step.behavior, ReadBehavior(fields, "Isolated"));
  } else if (type == "Whitespace") {
    step.scanner = ScanWordOrSymbols;
    step.invert = true;
    step.behavior = Behavior::kRemoved;
  } else if (type == "WhitespaceSplit") {
    step.scanner = ScanSpace;
    step.behavior = Behavior::kRemoved;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

absl::StatusOr<DecodeStep> ReadDecoder(Fields& fields) {
  using Kind = DecodeStep::Kind;
  const std::string type = fields.Text("type");
  DecodeStep step;
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    std::string regex;
    RETURN_IF_ERROR(ReadPattern(fields, step.from, regex));
    if (!regex.empty())
      return Refuse(fields.where(), "replaces by a pattern, which is not supported");
    step.to = fields.Text("content");
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.from = fields.Text("content", " ");
    step.start = fields.Number("start", 0);
    step.stop = fields.Number("stop", 0);
    if (step.from.empty()) return Refuse(fields.where(), "strips nothing");
  } else if (type == "Metaspace") {
    PreStep metaspace;
    RETURN_IF_ERROR(ReadMetaspace(fields, metaspace));
    step.kind = Kind::kMetaspace;
    step.from = metaspace.replacement;
    step.drop_first = metaspace.prepend != PrependScheme::kNever;
  } else {
    return UnknownType(fields);
  }
  RETURN_IF_ERROR(fields.status());
  return step;
}

}  // namespace

absl::Status ReadNormalizers(Fields& root, Pipeline& pipeline) {
  ASSIGN_OR_RETURN(std::vector<Fields> parts, Components(root, "normalizer", "normalizers"));
  for (Fields& fields : parts) {
    ASSIGN_OR_RETURN(NormalizeStep step, ReadNormalizer(fields));
    pipeline.normalizer.push_back(std::move(step));
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizers(Fields& root, Pipeline& pipeline, bool& byte_level) {
  ASSIGN_OR_RETURN(std::vector<Fields> parts, Components(root, "pre_tokenizer", "pretokenizers"));
  byte_level = false;
  for (Fields& fields : parts) {
    if (byte_level) return Refuse(fields.where(), "comes after ByteLevel, which is not supported");
    ASSIGN_OR_RETURN(PreStep step, ReadPreStep(fields, byte_level));
    pipeline.pre_tokenizer.push_back(std::move(step));
  }
  return absl::OkStatus();
}

absl::Status ReadDecoders(Fields& root, Pipeline& pipeline) {
  ASSIGN_OR_RETURN(std::vector<Fields> parts, Components(root, "decoder", "decoders"));
  for (Fields& fields : parts) {
    ASSIGN_OR_RETURN(DecodeStep step, ReadDecoder(fields));
    pipeline.decoder.push_back(std::move(step));
  }
  pipeline.join_with_spaces = pipeline.decoder.empty();
  return absl::OkStatus();
}

}  // namespace nibble::engine::tokenizer
