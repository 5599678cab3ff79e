#include <array>
#include <utility>

#include "tests/fuzz/fuzz.h"

namespace nibble::fuzz {
namespace {

constexpr std::array<std::string_view, 20> kNumbers = {"0",
                                                       "-1",
                                                       "1e308",
                                                       "1e999",
                                                       "-0.0",
                                                       "0.1",
                                                       "2147483648",
                                                       "9223372036854775807",
                                                       "9223372036854775808",
                                                       "-9223372036854775808",
                                                       "18446744073709551616",
                                                       "null",
                                                       "true",
                                                       "\"\"",
                                                       "[]",
                                                       "{}",
                                                       "NaN",
                                                       "\"nan\"",
                                                       "1e-400",
                                                       "4294967296"};

bool IsNumber(char c) { return (c >= '0' && c <= '9') || c == '-' || c == '.'; }

// Replaces a number of the text by one at the edge of what a reader may expect.
void ReplaceNumber(std::string& text, Random& random) {
  const size_t from = random.Below(text.size());
  for (size_t at = from; at < text.size(); ++at) {
    if (!IsNumber(text[at])) continue;
    size_t end = at;
    while (end < text.size() && IsNumber(text[end])) ++end;
    text.replace(at, end - at, kNumbers[random.Below(kNumbers.size())]);
    return;
  }
}

void MutateOnce(const Target& target, std::string& text, Random& random) {
  const size_t at = random.Below(text.size() + 1);
  const size_t length = 1 + random.Below(1 + random.Below(64));
  switch (random.Below(9)) {
    case 0:
      if (!text.empty())
        text[random.Below(text.size())] ^= static_cast<char>(1u << random.Below(8));
      return;
    case 1:
      text.insert(at, 1, static_cast<char>(random.Below(256)));
      return;
    case 2:
      text.erase(at, length);
      return;
    case 3:
      text.resize(at);
      return;
    case 4:
      text.insert(at, text.substr(random.Below(text.size() + 1), length));
      return;
    case 5: {
      const std::string& other = target.corpus[random.Below(target.corpus.size())];
      text.insert(at, other.substr(random.Below(other.size() + 1), length * 4));
      return;
    }
    case 6:
      if (!target.words.empty()) text.insert(at, target.words[random.Below(target.words.size())]);
      return;
    case 7:
      if (!text.empty()) ReplaceNumber(text, random);
      return;
    default: {
      // Deep nesting and long runs: what recursion and quadratic loops stumble over.
      const char c = std::string_view("[{(\"\\ \n\xff-")[random.Below(9)];
      text.insert(at, size_t{1} << random.Below(13), c);
    }
  }
}

}  // namespace

uint64_t Random::Next() {
  state_ += 0x9e3779b97f4a7c15ull;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

std::string Mutate(const Target& target, Random& random) {
  std::string text = target.corpus[random.Below(target.corpus.size())];
  for (uint64_t count = 1 + random.Below(1 + random.Below(12)); count > 0; --count)
    MutateOnce(target, text, random);
  return text;
}

}  // namespace nibble::fuzz
