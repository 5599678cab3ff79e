// tokenizer_check DIR CASES.jsonl: runs the cases that tests/oracle/make_tokenizer_fixtures.py
// wrote through the tokenizer of DIR; prints what loading took, the first differences and the speed;
// exits 1 when any differs.
#include <malloc.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"

namespace {

long MemoryKib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    long kib = 0;
    if (word == key && status >> kib) return kib;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  using nibble::engine::Tokenizer;
  using Ids = std::vector<int32_t>;
  if (argc != 3) {
    std::fprintf(stderr, "usage: tokenizer_check DIR CASES.jsonl\n");
    return 2;
  }
  const auto opened = std::chrono::steady_clock::now();
  const auto tokenizer = Tokenizer::Load(argv[1]);
  const std::chrono::duration<double> loading = std::chrono::steady_clock::now() - opened;
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 2;
  }
  malloc_trim(0);  // as an engine does
  std::printf("%d ids, loaded in %.2f s, %ld KiB, at most %ld KiB\n", tokenizer->vocab_size(),
              loading.count(), MemoryKib("VmRSS:"), MemoryKib("VmHWM:"));
  std::ifstream file(argv[2]);
  std::string line;
  int64_t cases = 0, wrong = 0, bytes = 0;
  std::chrono::duration<double> spent{};
  while (std::getline(file, line)) {
    const auto expected = nlohmann::json::parse(line);
    const auto text = expected["text"].get<std::string>();
    const auto start = std::chrono::steady_clock::now();
    const Ids ids = tokenizer->Encode(text, false);
    spent += std::chrono::steady_clock::now() - start;
    bytes += static_cast<int64_t>(text.size());
    ++cases;
    const Ids full = tokenizer->Encode(text, true);
    const nlohmann::json got = {{"ids", ids},
                                {"ids_with_special", full},
                                {"decoded", tokenizer->Decode(ids, false)},
                                {"decoded_plain", tokenizer->Decode(full, true)}};
    for (const auto& [key, value] : got.items()) {
      if (!expected.contains(key) || expected[key] == value) continue;
      if (++wrong <= 10) {
        std::printf("text     %s\n%s\n  expected %s\n  got      %s\n",
                    expected["text"].dump().c_str(), key.c_str(), expected[key].dump().c_str(),
                    value.dump().c_str());
      }
      break;
    }
  }
  std::printf("%ld cases, %ld differ, %.1f MB/s\n", static_cast<long>(cases),
              static_cast<long>(wrong), static_cast<double>(bytes) / spent.count() / 1e6);
  return wrong == 0 && cases > 0 ? 0 : 1;
}
