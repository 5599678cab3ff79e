// Normalizers and decoders: the steps that work on text and on tokens' texts.
#include <cstdio>
#include <utility>

#include "engine/text/tokenizer_pipeline.h"

namespace nibble::engine::tokenizer {
namespace {

std::string StripSpaces(std::string_view text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const CodePoint c = DecodeAt(text, begin);
    if (!IsSpace(c.value)) break;
    begin += c.bytes;
  }
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!IsSpace(DecodeAt(text, last).value)) break;
    end = last;
  }
  return std::string(text.substr(begin, end - begin));
}

std::string Lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = DecodeAt(text, pos);
    AppendLower(out, c.value);
    pos += c.bytes;
  }
  return out;
}

// The byte a token "<0xE4>" stands for, or -1.
int ByteOfFallbackToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::vector<std::string> DecodeByteLevel(const std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    const auto own = BytesOfToken(token);
    bytes += own ? *own : token;  // an added token may hold anything; it stands for itself
  }
  return {RepairUtf8(bytes)};
}

// Runs of byte tokens become their text, or one U+FFFD per byte when they are none.
std::vector<std::string> DecodeByteFallback(const std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (IsValidUtf8(bytes)) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    const int byte = ByteOfFallbackToken(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
      continue;
    }
    flush();
    out.push_back(token);
  }
  flush();
  return out;
}

std::string StripToken(std::string_view token, const DecodeStep& step) {
  for (int64_t i = 0; i < step.start && token.starts_with(step.from); ++i) {
    token.remove_prefix(step.from.size());
  }
  for (int64_t i = 0; i < step.stop && token.ends_with(step.from); ++i) {
    token.remove_suffix(step.from.size());
  }
  return std::string(token);
}

std::vector<std::string> Apply(const DecodeStep& step, std::vector<std::string> tokens) {
  using Kind = DecodeStep::Kind;
  switch (step.kind) {
    case Kind::kByteLevel:
      return DecodeByteLevel(tokens);
    case Kind::kByteFallback:
      return DecodeByteFallback(tokens);
    case Kind::kReplace:
      for (std::string& token : tokens) token = ReplaceAll(token, step.from, step.to);
      return tokens;
    case Kind::kStrip:
      for (std::string& token : tokens) token = StripToken(token, step);
      return tokens;
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = ReplaceAll(tokens[i], step.from, i == 0 && step.drop_first ? "" : " ");
      }
      return tokens;
    case Kind::kFuse:
      break;
  }
  std::string all;
  for (const std::string& token : tokens) all += token;
  return {std::move(all)};
}

}  // namespace

std::string NormalizeText(const std::vector<NormalizeStep>& steps, std::string_view text,
                          bool continues) {
  std::string out(text);
  for (const NormalizeStep& step : steps) {
    switch (step.kind) {
      case NormalizeStep::Kind::kForm:
        out = Normalize(out, step.form);
        break;
      case NormalizeStep::Kind::kPrepend:
        if (!out.empty() && !continues) out.insert(0, step.to);
        break;
      case NormalizeStep::Kind::kReplace:
        out = ReplaceAll(out, step.from, step.to);
        break;
      case NormalizeStep::Kind::kStrip:
        out = StripSpaces(out, step.left, step.right);
        break;
      case NormalizeStep::Kind::kLowercase:
        out = Lowercase(out);
        break;
    }
  }
  return out;
}

std::string DecodeTokens(const std::vector<DecodeStep>& steps, bool join_with_spaces,
                         std::vector<std::string> tokens) {
  for (const DecodeStep& step : steps) tokens = Apply(step, std::move(tokens));
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (join_with_spaces && i > 0) out += ' ';
    out += tokens[i];
  }
  return out;
}

}  // namespace nibble::engine::tokenizer
