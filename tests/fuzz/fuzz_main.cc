// nibble-fuzz [--target=NAME] [--runs=N] [--seed=N] [--run=N]: see fuzz.h. With --run only that one
// input, which is also written to fuzz-input for a debugger.
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "tests/fuzz/fuzz.h"

namespace nibble::fuzz {
namespace {

// What a crash handler may read: the input under way.
const char* g_target = "";
uint64_t g_seed = 0;
uint64_t g_run = 0;
constexpr unsigned kSecondsPerInput = 20;

void Say() {
  char line[256];
  const int size = std::snprintf(
      line, sizeof line, "nibble-fuzz: --target=%s --seed=%llu --run=%llu\n", g_target,
      static_cast<unsigned long long>(g_seed), static_cast<unsigned long long>(g_run));
  if (write(STDERR_FILENO, line, static_cast<size_t>(size)) < 0) _exit(3);
}

void OnSignal(int signal) {
  Say();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

bool TakesNumber(std::string_view argument, std::string_view flag, uint64_t& value) {
  if (!argument.starts_with(flag)) return false;
  value = std::strtoull(argument.data() + flag.size(), nullptr, 10);
  return true;
}

int RunTarget(const Target& target, uint64_t seed, uint64_t first, uint64_t runs, bool keep) {
  g_target = target.name.c_str();
  g_seed = seed;
  for (const std::string& input : target.corpus) target.run(input);  // as they are
  for (uint64_t run = first; run < first + runs; ++run) {
    g_run = run;
    Random random(seed, run);
    const std::string input = Mutate(target, random);
    if (keep) std::ofstream("fuzz-input", std::ios::binary) << input;
    alarm(kSecondsPerInput);
    target.run(input);
  }
  alarm(0);
  std::printf("%-18s %zu seeds, %llu inputs\n", target.name.c_str(), target.corpus.size(),
              static_cast<unsigned long long>(runs));
  return 0;
}

int Main(int argc, char** argv) {
  uint64_t runs = 1000, seed = 1, only = UINT64_MAX;
  std::string_view wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with("--target="))
      wanted = argument.substr(9);
    else if (!TakesNumber(argument, "--runs=", runs) && !TakesNumber(argument, "--seed=", seed) &&
             !TakesNumber(argument, "--run=", only)) {
      std::fprintf(stderr, "usage: nibble-fuzz [--target=NAME] [--runs=N] [--seed=N] [--run=N]\n");
      return 2;
    }
  }
  for (const int signal : {SIGSEGV, SIGABRT, SIGALRM, SIGFPE, SIGBUS, SIGILL})
    std::signal(signal, OnSignal);
  std::vector<Target> targets = EngineTargets();
  for (Target& target : EdgeTargets()) targets.push_back(std::move(target));
  bool found = false;
  for (const Target& target : targets) {
    if (!wanted.empty() && target.name != wanted) continue;
    found = true;
    const bool one = only != UINT64_MAX;
    RunTarget(target, seed, one ? only : 0, one ? 1 : runs, one);
  }
  if (!found) std::fprintf(stderr, "nibble-fuzz: there is no such target\n");
  return found ? 0 : 2;
}

}  // namespace

void Require(bool holds, std::string_view what) {
  if (holds) return;
  std::fprintf(stderr, "nibble-fuzz: %.*s\n", static_cast<int>(what.size()), what.data());
  std::abort();
}

std::string RepositoryFile(std::string_view path, size_t limit) {
  const char* root = std::getenv("NIBBLE_SOURCE_DIR");
  std::ifstream file(std::string(root ? root : ".") + "/" + std::string(path), std::ios::binary);
  Require(file.good(), "NIBBLE_SOURCE_DIR must name the repository");
  std::string bytes(limit, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(limit));
  bytes.resize(static_cast<size_t>(file.gcount()));
  return bytes;
}

}  // namespace nibble::fuzz

int main(int argc, char** argv) { return nibble::fuzz::Main(argc, argv); }
