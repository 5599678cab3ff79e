// nibble-kernel-check: runs the kernel checks without a test framework, on a bare machine.
//
//   nibble-kernel-check --list
//   nibble-kernel-check [--table=cpu|cuda|cuda-emulated|ref] [--body NAME] [--fp16] [--device N]
//                       [--threads N] [--part I/N] [--skip N] [WORDS IN A CASE'S NAME]
//
// cpu, the default, checks every body of this machine, or the one that --body names; cuda runs on a device,
// each case twice, and wants equal bits; cuda-emulated runs the same kernels on the host;
// NIBBLE_CUDA_ATTENTION=wgmma chooses Hopper's attention in both. --part I/N takes every N-th of the cases,
// from the I-th on (from 0), and --skip leaves out the first of those. Prints a line per case; exit status 1
// when one fails, 2 when the table cannot run here, 3 when the device failed and what is left was not run.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "kernels/tables.h"
#include "tests/kernels/device_table.h"
#include "tests/kernels/harness.h"

namespace nibble::kernels::check {
namespace {

struct Options {
  std::string table = "cpu", body, filter;
  bool fp16 = false, list = false;
  int device = 0, threads = 2;
  int part = 0, parts = 1, skip = 0;
};

std::optional<Options> Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool more = i + 1 < argc;
    if (word == "--list") {
      options.list = true;
    } else if (word.starts_with("--table=")) {
      options.table = word.substr(8);
    } else if (word == "--fp16") {
      options.fp16 = true;
    } else if (word == "--body" && more) {
      options.body = argv[++i];
    } else if (word == "--threads" && more) {
      options.threads = std::atoi(argv[++i]);
    } else if (word == "--device" && more) {
      options.device = std::atoi(argv[++i]);
    } else if (word == "--part" && more) {
      if (std::sscanf(argv[++i], "%d/%d", &options.part, &options.parts) != 2) options.parts = 0;
    } else if (word == "--skip" && more) {
      options.skip = std::atoi(argv[++i]);
    } else if (word.starts_with("-")) {
      std::fprintf(stderr, "unknown option %s\n", word.c_str());
      return std::nullopt;
    } else {
      options.filter = word;
    }
  }
  if (options.threads < 1 || options.threads > 256) {
    std::fprintf(stderr, "--threads wants 1 to 256\n");
    return std::nullopt;
  }
  if (options.part < 0 || options.part >= options.parts) {
    std::fprintf(stderr, "--part wants I/N, I from 0 to N - 1\n");
    return std::nullopt;
  }
  return options;
}

// The tables to check, and what must live while they are.
struct Tables {
  std::unique_ptr<Backend> backend;
  std::vector<KernelTable> tables;
  std::string why;  // there is none
};

Tables Choose(const Options& options) {
  Tables out;
  if (options.table == "ref" || options.body == "ref") {
    out.tables.push_back(RefTable());
  } else if (options.table == "cuda-emulated") {
    if (const CudaAttention* attention = ChosenAttention(true, &out.why))
      out.tables.push_back(EmulatedCudaKernels(options.fp16, *attention));
  } else if (options.table == "cuda") {
    out.backend = OpenCuda({.index = options.device, .fp16 = options.fp16}, &out.why);
    if (out.backend != nullptr) out.tables.push_back(TableForHostMemory(*out.backend));
  } else if (options.table == "cpu") {
    for (const std::string_view body : CpuBodies())
      if (options.body.empty() || body == options.body) out.tables.push_back(*CpuTableFor(body));
    if (out.tables.empty()) out.why = "no body '" + options.body + "' on this machine";
  } else {
    out.why = "--table is cpu, cuda, cuda-emulated or ref";
  }
  return out;
}

// The cases that are asked for.
std::vector<Case> ChooseCases(const Options& options) {
  std::vector<Case> chosen;
  int at = 0;
  for (Case& c : AllCases()) {
    if (c.name.find(options.filter) == std::string::npos) continue;
    const int turn = at++;
    if (turn % options.parts == options.part && turn / options.parts >= options.skip)
      chosen.push_back(std::move(c));
  }
  return chosen;
}

int Run(const Options& options) {
  const std::vector<Case> cases = ChooseCases(options);
  if (options.list) {
    for (const Case& c : cases) std::printf("%s\n", c.name.c_str());
    return 0;
  }
  const Tables chosen = Choose(options);
  if (chosen.tables.empty()) {
    std::fprintf(stderr, "nibble-kernel-check: %s\n", chosen.why.c_str());
    return 2;
  }
  int failed = 0, passed = 0, missing = 0;
  for (const KernelTable& table : chosen.tables) {
    for (const Case& c : cases) {
      std::printf("%s %s threads=%d '%s' : ", table.name, table.body, options.threads, c.name.c_str());
      std::fflush(stdout);  // so that a fault leaves the line of the case it came from
      Outcome outcome = RunCase(c, table, options.threads);
      if (!outcome.missing.empty()) {
        std::printf("missing, the table has no %s\n", outcome.missing.c_str());
        ++missing;
        continue;
      }
      if (chosen.backend != nullptr) {
        if (outcome.ok() && RunCase(c, table, options.threads).digest != outcome.digest)
          outcome.failure = "other bits when run again";
        outcome.failure += TakeDeviceFailure();
      }
      std::printf("%s %.3f of tolerance %s\n", outcome.ok() ? "ok" : "FAILED", outcome.error,
                  outcome.failure.c_str());
      (outcome.ok() ? passed : failed)++;
      if (chosen.backend != nullptr && chosen.backend->fault() == Fault::kDevice) {
        std::printf("stopped: the device failed; %d passed, %d failed before\n", passed, failed - 1);
        return 3;
      }
    }
  }
  std::printf("%d passed, %d failed, %d missing\n", passed, failed, missing);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble::kernels::check

int main(int argc, char** argv) {
  const auto options = nibble::kernels::check::Parse(argc, argv);
  return options ? nibble::kernels::check::Run(*options) : 2;
}
