// nibble-sim --seed=N [--runs=K] [--replay-every=M] [--verbose] [--mutant=NAME | --mutants]
// [--reach]
//
// nibble-sim fleet ...: the fleet simulator, see tests/fleet.
//
// Drives the real cores through seeded runs with crashes, lost and repeated messages, and checks
// the promises. Exit codes: 0 fine, 1 usage, 2 safety, 3 liveness, 4 nondeterminism, 5 reach, 6 a
// mutant lived.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>

#include "tests/fleet/run.h"
#include "tests/sim/cluster.h"

namespace nibble::sim {
namespace {

struct Flags {
  uint64_t seed = 1;
  int64_t runs = 1;
  int64_t replay_every = 0;  // 0 = never
  bool verbose = false;
  bool reach = false;
  bool mutants = false;
  Mutant mutant = Mutant::kNone;
};

// What a batch of runs must have seen; a fault nobody reaches is not tested.
constexpr const char* kMustReach[] = {
    "job.queued",
    "job.requeued",
    "job.cancelling",
    "job.cancelled",
    "job.pausing",
    "job.paused",
    "job.resumed",
    "job.succeeded",
    "job.failed",
    "job.checked",
    "job.updated",
    "job.deleted",
    "attempt.assigned",
    "attempt.planned",
    "attempt.started",
    "attempt.release_requested",
    "attempt.freed",
    "checkpoint.saved",
    "checkpoint.dropped",
    "worker.registered",
    "worker.lost",
    "worker.deleted",
    "worker.disk_full",
    "worker.has_room",
    "worker.returned",
    "worker.draining",
    "worker.undrained",
    "device.withdrawn",
    "device.restored",
    "blob.shown",
    "server.slept",
    "attempt FAILED DEVICE_FAULT",
    "attempt DONE finished",
    "attempt LOST WORKER_LOST",
    "attempt CANCELLED cancelled",
    "attempt RELEASED paused",
    "attempt FAILED ENGINE_FAILED",
    "attempt FAILED LOSS_NOT_FINITE",
    "failed LOSS_NOT_FINITE",
    "failed NO_SUPERVISED_TOKENS",
    "failed POISON",
    "resumed from a checkpoint",
    "went on in memory",
    "runs alone",
    "preempted",
    "request id reused",
    "attempt FAILED CHECKPOINT_INVALID",
    "blob.forgotten",
    "answer twice",
    "watcher cut",
};

bool ReadFlag(std::string_view argument, std::string_view name, std::string& value) {
  if (argument.substr(0, name.size()) != name || argument.size() <= name.size() ||
      argument[name.size()] != '=') {
    return false;
  }
  value = std::string(argument.substr(name.size() + 1));
  return true;
}

bool Parse(int argc, char** argv, Flags& flags) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    std::string value;
    if (ReadFlag(argument, "--seed", value)) {
      flags.seed = std::strtoull(value.c_str(), nullptr, 10);
    } else if (ReadFlag(argument, "--runs", value)) {
      flags.runs = std::strtoll(value.c_str(), nullptr, 10);
    } else if (ReadFlag(argument, "--replay-every", value)) {
      flags.replay_every = std::strtoll(value.c_str(), nullptr, 10);
    } else if (ReadFlag(argument, "--mutant", value)) {
      flags.mutant = MutantFromName(value);
      if (flags.mutant == Mutant::kNone) return false;
    } else if (argument == "--mutants") {
      flags.mutants = true;
    } else if (argument == "--verbose") {
      flags.verbose = true;
    } else if (argument == "--reach") {
      flags.reach = true;
    } else {
      return false;
    }
  }
  return true;
}

std::string ReplayCommand(uint64_t seed, Mutant mutant) {
  std::string command = "nibble-sim --verbose --seed=" + std::to_string(seed);
  if (mutant != Mutant::kNone) command += " --mutant=" + std::string(MutantName(mutant));
  return command;
}

int Report(const RunResult& result, uint64_t seed, Mutant mutant) {
  if (result.verdict == RunResult::Verdict::kOk) return 0;
  const bool safety = result.verdict == RunResult::Verdict::kSafety;
  std::printf("seed %llu: %s violated: %s\nreplay: %s\n", static_cast<unsigned long long>(seed),
              safety ? "safety" : "liveness", result.message.c_str(),
              ReplayCommand(seed, mutant).c_str());
  return safety ? 2 : 3;
}

int RunSeeds(const Flags& flags) {
  std::set<std::string> marks;
  int64_t steps = 0;
  int64_t jobs = 0;
  for (int64_t i = 0; i < flags.runs; ++i) {
    const uint64_t seed = flags.seed + static_cast<uint64_t>(i);
    const RunResult result = Cluster(seed, flags.mutant, flags.verbose).Run();
    if (const int code = Report(result, seed, flags.mutant); code != 0) return code;
    if (flags.replay_every > 0 && i % flags.replay_every == 0) {
      if (Cluster(seed, flags.mutant, false).Run().hash != result.hash) {
        std::printf("seed %llu: two runs differ\nreplay: %s\n",
                    static_cast<unsigned long long>(seed),
                    ReplayCommand(seed, flags.mutant).c_str());
        return 4;
      }
    }
    marks.insert(result.marks.begin(), result.marks.end());
    steps += result.steps;
    jobs += result.jobs;
    if (flags.runs == 1)
      std::printf("trace %016llx\n", static_cast<unsigned long long>(result.hash));
  }
  std::printf("%lld runs, %lld jobs, %lld events: no promise broken\n",
              static_cast<long long>(flags.runs), static_cast<long long>(jobs),
              static_cast<long long>(steps));
  int code = 0;
  for (const char* mark : kMustReach) {
    if (!flags.reach || marks.count(mark) > 0) continue;
    std::printf("never reached: %s\n", mark);
    code = 5;
  }
  return code;
}

// Every mutant must be found within `runs` seeds.
int RunMutants(const Flags& flags) {
  int alive = 0;
  for (const Mutant mutant : AllMutants()) {
    int64_t found_after = 0;
    std::string message;
    for (int64_t i = 0; i < flags.runs && found_after == 0; ++i) {
      const RunResult result = Cluster(flags.seed + static_cast<uint64_t>(i), mutant, false).Run();
      if (result.verdict == RunResult::Verdict::kOk) continue;
      found_after = i + 1;
      message = result.message;
    }
    const std::string name(MutantName(mutant));
    if (found_after > 0) {
      std::printf("mutant %s: found after %lld runs: %s\n", name.c_str(),
                  static_cast<long long>(found_after), message.c_str());
    } else {
      std::printf("mutant %s: NOT FOUND in %lld runs\n", name.c_str(),
                  static_cast<long long>(flags.runs));
      ++alive;
    }
  }
  return alive == 0 ? 0 : 6;
}

}  // namespace
}  // namespace nibble::sim

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "fleet") return nibble::fleet::FleetMain(argc - 1, argv + 1);
  nibble::sim::Flags flags;
  if (!nibble::sim::Parse(argc, argv, flags)) {
    std::fprintf(
        stderr,
        "usage: nibble-sim [--seed=N] [--runs=K] [--replay-every=M] [--reach] [--verbose]\n"
        "                  [--mutant=NAME | --mutants]\n"
        "       nibble-sim fleet ...: workloads on a fleet; nibble-sim fleet --help\n");
    return 1;
  }
  return flags.mutants ? nibble::sim::RunMutants(flags) : nibble::sim::RunSeeds(flags);
}
