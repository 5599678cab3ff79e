// nibble-kernel-check: runs the kernel checks without a test framework, on a bare machine.
//
//   nibble-kernel-check --list
//   nibble-kernel-check [--body NAME] [--threads N] [WORDS IN A CASE'S NAME]
//
// Without --body every body of this machine is checked. Prints a line per case; exit status 1 when one
// fails.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/tables.h"
#include "tests/kernels/harness.h"

int main(int argc, char** argv) {
  using namespace nibble::kernels;
  std::vector<std::string_view> bodies = CpuBodies();
  int threads = 2;
  std::string filter;
  bool list = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--list") == 0) {
      list = true;
    } else if (std::strcmp(argv[i], "--body") == 0 && i + 1 < argc) {
      bodies = {argv[++i]};
    } else if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else {
      filter = argv[i];
    }
  }
  if (threads < 1 || threads > 256) {
    std::fprintf(stderr, "--threads wants 1 to 256\n");
    return 2;
  }
  int failed = 0, passed = 0;
  for (const std::string_view body : bodies) {
    const KernelTable* table = body == "ref" ? &RefTable() : CpuTableFor(body);
    if (table == nullptr) {
      std::fprintf(stderr, "no body '%.*s' on this machine\n", static_cast<int>(body.size()), body.data());
      return 2;
    }
    for (const check::Case& c : check::AllCases()) {
      if (c.name.find(filter) == std::string::npos) continue;
      if (list) {
        std::printf("%s\n", c.name.c_str());
        continue;
      }
      std::printf("nibble-kernel-check --body %s --threads %d '%s' : ", table->body, threads,
                  c.name.c_str());
      std::fflush(stdout);  // so that a fault leaves the line of the case it came from
      const check::Outcome outcome = c.run(*table, threads);
      std::printf("%s %.3f of tolerance %s\n", outcome.ok() ? "ok" : "FAILED", outcome.error,
                  outcome.failure.c_str());
      (outcome.ok() ? passed : failed)++;
    }
    if (list) break;
  }
  if (!list) std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
