#include "engine/text/tokenizer_scan.h"

#include <array>
#include <utility>

#include "engine/text/text.h"

namespace nibble::engine::tokenizer {
namespace {

using Class = bool (*)(char32_t);

// End of the run of characters of `is` from `pos`.
size_t RunEnd(std::string_view text, size_t pos, Class is) {
  while (pos < text.size()) {
    const CodePoint c = DecodeAt(text, pos);
    if (!is(c.value)) break;
    pos += c.bytes;
  }
  return pos;
}

bool Is(std::string_view text, size_t pos, Class is) {
  return pos < text.size() && is(DecodeAt(text, pos).value);
}

bool IsNewline(char32_t c) { return c == '\r' || c == '\n'; }
// [^\s\p{L}\p{N}]
bool IsOther(char32_t c) { return !IsSpace(c) && !IsLetter(c) && !IsNumber(c); }
bool IsCjkOrHangul(char32_t c) {
  return (c >= 0x0800 && c <= 0x9FA5) || (c >= 0xAC00 && c <= 0xD7FF);
}

// \s+(?!\S)|\s+ : a run of spaces, without its last when something follows it; 0 when none begins
// here.
size_t SpaceRun(std::string_view text, size_t pos) {
  size_t last = pos;
  size_t end = pos;
  while (end < text.size()) {
    const CodePoint c = DecodeAt(text, end);
    if (!IsSpace(c.value)) break;
    last = end;
    end += c.bytes;
  }
  if (end == text.size() || last == pos) return end - pos;
  return last - pos;
}

// \s*[\r\n]+ : to behind the last newline of the run of spaces.
size_t SpaceRunToNewline(std::string_view text, size_t pos) {
  size_t match = 0;
  for (size_t end = pos; end < text.size();) {
    const CodePoint c = DecodeAt(text, end);
    if (!IsSpace(c.value)) break;
    end += c.bytes;
    if (IsNewline(c.value)) match = end - pos;
  }
  return match;
}

// 's|'t|'re|'ve|'m|'ll|'d, as they are or in any case. Folding case, the long s is an s too.
template <bool kAnyCase>
size_t Contraction(std::string_view text, size_t pos) {
  if (text[pos] != '\'' || pos + 1 >= text.size()) return 0;
  const auto lower = [&](size_t i) {
    const char c = text[i];
    return kAnyCase && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char a = lower(pos + 1);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if (kAnyCase && text.substr(pos + 1, 2) == "\xC5\xBF") return 3;
  if (pos + 2 >= text.size()) return 0;
  const char b = lower(pos + 2);
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  return 0;
}

// The pattern Llama 3 and Qwen 2 share; they differ in how many digits stay together.
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,kDigits}|
//   ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
template <int kDigits>
size_t ScanLlama3(std::string_view text, size_t pos) {
  if (const size_t match = Contraction<true>(text, pos)) return match;
  const CodePoint first = DecodeAt(text, pos);
  const size_t second = pos + first.bytes;
  if (IsLetter(first.value)) return RunEnd(text, second, IsLetter) - pos;
  if (!IsNewline(first.value) && !IsNumber(first.value) && Is(text, second, IsLetter)) {
    return RunEnd(text, second, IsLetter) - pos;
  }
  if (IsNumber(first.value)) {
    size_t end = second;
    for (int i = 1; i < kDigits && Is(text, end, IsNumber); ++i) end += CharBytes(text[end]);
    return end - pos;
  }
  const size_t symbols = first.value == ' ' ? second : pos;
  if (Is(text, symbols, IsOther)) {
    return RunEnd(text, RunEnd(text, symbols, IsOther), IsNewline) - pos;
  }
  if (const size_t match = SpaceRunToNewline(text, pos)) return match;
  return SpaceRun(text, pos);
}

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}]: letters without case and marks are
// both.
bool IsUpperish(char32_t c) { return IsMark(c) || (IsLetter(c) && !IsLowerCase(c)); }
bool IsLowerish(char32_t c) { return IsMark(c) || (IsLetter(c) && !IsUpperCase(c)); }

// Uppers* lowers+ from `pos`, as a regex engine with backtracking matches it; 0 = not at all.
size_t CasedWord(std::string_view text, size_t pos) {
  const size_t uppers = RunEnd(text, pos, IsUpperish);
  const size_t end = RunEnd(text, uppers, IsLowerish);
  if (end > uppers) return end - pos;
  // Gives back characters of the upper run until one of them is lowerish as well.
  size_t last = 0;
  for (size_t at = pos; at < uppers; at += CharBytes(text[at])) {
    if (Is(text, at, IsLowerish)) last = at + CharBytes(text[at]);
  }
  return last == 0 ? 0 : last - pos;
}

// [^\r\n\p{L}\p{N}]?uppers*lowers+|[^\r\n\p{L}\p{N}]?uppers+lowers*
size_t WordByCase(std::string_view text, size_t pos) {
  const CodePoint first = DecodeAt(text, pos);
  const bool prefix = !IsNewline(first.value) && !IsLetter(first.value) && !IsNumber(first.value);
  const size_t behind = pos + first.bytes;
  if (prefix && behind < text.size()) {
    if (const size_t match = CasedWord(text, behind)) return first.bytes + match;
  }
  if (const size_t match = CasedWord(text, pos)) return match;
  for (const size_t start : {behind, pos}) {
    if (start == behind && !prefix) continue;
    const size_t uppers = RunEnd(text, start, IsUpperish);
    if (uppers > start) return RunEnd(text, uppers, IsLowerish) - pos;
  }
  return 0;
}

bool IsNewlineOrSlash(char32_t c) { return IsNewline(c) || c == '/'; }

// The pattern of Mistral's newer tokenizers (one digit, no contractions) and of GPT-4o (three,
// with).
template <int kDigits, bool kContractions>
size_t ScanByCase(std::string_view text, size_t pos) {
  if (const size_t word = WordByCase(text, pos)) {
    const size_t end = pos + word;
    return kContractions && end < text.size() ? word + Contraction<true>(text, end) : word;
  }
  const CodePoint first = DecodeAt(text, pos);
  if (IsNumber(first.value)) {
    size_t end = pos + first.bytes;
    for (int i = 1; i < kDigits && Is(text, end, IsNumber); ++i) end += CharBytes(text[end]);
    return end - pos;
  }
  const size_t symbols = first.value == ' ' ? pos + 1 : pos;
  if (Is(text, symbols, IsOther)) {
    return RunEnd(text, RunEnd(text, symbols, IsOther), IsNewlineOrSlash) - pos;
  }
  if (const size_t match = SpaceRunToNewline(text, pos)) return match;
  return SpaceRun(text, pos);
}

// An optional space character and a run of `is`.
template <Class is>
size_t ScanSpaceAndRun(std::string_view text, size_t pos) {
  const CodePoint first = DecodeAt(text, pos);
  const size_t start = IsSpace(first.value) && !is(first.value) ? pos + first.bytes : pos;
  const size_t end = RunEnd(text, start, is);
  return end == start ? 0 : end - pos;
}

template <Class is>
size_t ScanOne(std::string_view text, size_t pos) {
  const CodePoint c = DecodeAt(text, pos);
  return is(c.value) ? c.bytes : 0;
}

template <Class is>
size_t ScanRun(std::string_view text, size_t pos) {
  return RunEnd(text, pos, is) - pos;
}

bool IsAsciiOrUnicodePunctuation(char32_t c) {
  return (c >= 33 && c <= 126 && !IsLetter(c) && !IsNumber(c)) || IsPunctuation(c);
}
bool IsSymbol(char32_t c) { return !IsWord(c) && !IsSpace(c); }

constexpr std::pair<std::string_view, Scanner> kPatterns[] = {
    // GPT-2.
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", ScanGpt2},
    {R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", ScanGpt2},
    // Llama 3.
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     ScanLlama3<3>},
    // Qwen 2, 2.5, 3.
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     ScanLlama3<1>},
    // Mistral Nemo and later ("Tekken"), and GPT-4o.
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     ScanByCase<1, false>},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     ScanByCase<3, true>},
    // The five steps of DeepSeek-Coder.
    {R"([\r\n])", ScanOne<IsNewline>},
    {R"(\s?\p{L}+)", ScanSpaceAndRun<IsLetter>},
    {R"(\s?\p{P}+)", ScanSpaceAndRun<IsPunctuation>},
    {"[\xE4\xB8\x80-\xE9\xBE\xA5\xE0\xA0\x80-\xE4\xB8\x80\xEA\xB0\x80-\xED\x9F\xBF]+",
     ScanRun<IsCjkOrHangul>},
    // Single digits, as newer tokenizers spell it.
    {R"(\p{N})", ScanDigit},
    {R"(\s+)", ScanRun<IsSpace>},
};

}  // namespace

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t ScanGpt2(std::string_view text, size_t pos) {
  if (const size_t match = Contraction<false>(text, pos)) return match;
  const size_t start = text[pos] == ' ' ? pos + 1 : pos;
  if (start < text.size()) {
    const CodePoint c = DecodeAt(text, start);
    if (IsLetter(c.value)) return RunEnd(text, start + c.bytes, IsLetter) - pos;
    if (IsNumber(c.value)) return RunEnd(text, start + c.bytes, IsNumber) - pos;
    if (!IsSpace(c.value)) return RunEnd(text, start + c.bytes, IsOther) - pos;
  }
  return SpaceRun(text, pos);
}

size_t ScanDigit(std::string_view text, size_t pos) { return ScanOne<IsNumber>(text, pos); }
size_t ScanPunctuation(std::string_view text, size_t pos) {
  return ScanOne<IsAsciiOrUnicodePunctuation>(text, pos);
}
size_t ScanSpace(std::string_view text, size_t pos) { return ScanOne<IsSpace>(text, pos); }
size_t ScanWordOrSymbols(std::string_view text, size_t pos) {
  if (const size_t word = ScanRun<IsWord>(text, pos)) return word;
  return ScanRun<IsSymbol>(text, pos);
}

Scanner ScannerForPattern(std::string_view pattern) {
  for (const auto& [text, scanner] : kPatterns) {
    if (text == pattern) return scanner;
  }
  return nullptr;
}

}  // namespace nibble::engine::tokenizer
