// Speaks the line protocol and trains nothing: for tests of the worker without an engine.
//
// Its loss falls with the step, its checkpoint holds the step, its adapter the step it ended with.
// What goes wrong is asked for in the job's display name: "crash-at-N" (only when not resumed),
// "fail-at-N", "nonsense-at-N", "slow" (20 ms a step), "dies-at-N": the device, until NIBBLE_FAKE_DEAD_FILE
// is removed.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kSocket = 3;

struct Job {
  std::string name;
  std::string dir;
  std::string wish;
  bool resumed = false;
  bool paused = false;
  bool checkpoint_asked = false;
  bool leaving = false;
  bool leave_with_checkpoint = false;
  long step = 0;
  long planned = 10;
  long save_steps = 4;
};

void Say(const json& line) {
  const std::string text = line.dump() + "\n";
  if (send(kSocket, text.data(), text.size(), MSG_NOSIGNAL) < 0) std::exit(0);
}

std::string FlagValue(int argc, char** argv, const std::string& name) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (argv[i] == name) return argv[i + 1];
  }
  return "";
}

void WriteText(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
}

const json kProfile = {{"backend", "cpu"},   {"body", "fake"}, {"build", "fake"},
                       {"threads", 1},       {"act_bytes", 2}, {"fixed_bytes", 1 << 20},
                       {"capacity_bytes", 0}};

std::string DeadFile() {
  const char* file = std::getenv("NIBBLE_FAKE_DEAD_FILE");
  return file == nullptr ? "" : file;
}

long WishedStep(const Job& job, const std::string& what) {
  const size_t at = job.wish.find(what + "-at-");
  return at == std::string::npos ? -1 : std::atol(job.wish.c_str() + at + what.size() + 4);
}

void SaveCheckpoint(Job& job) {
  const fs::path dir = fs::path(job.dir) / "checkpoints" / ("step-" + std::to_string(job.step));
  fs::create_directories(dir);
  WriteText(dir / "state.txt", std::to_string(job.step));
  WriteText(dir / "manifest.json", "{\"step\":" + std::to_string(job.step) + "}");
  Say({{"type", "checkpoint"},
       {"attempt", job.name},
       {"step", job.step},
       {"dir", dir.string()},
       {"bytes", 10},
       {"manifest_sha256", std::string(64, 'a')},
       {"loss", 1.0 / static_cast<double>(job.step)}});
}

Job Attach(const json& o) {
  Job job;
  job.name = o["attempt"];
  job.dir = o["dir"];
  job.wish = o["display_name"];
  const json& spec = o["spec"];
  if (spec.value("max_steps", -1) > 0) job.planned = spec["max_steps"];
  if (spec.value("save_steps", -1) > 0) job.save_steps = spec["save_steps"];
  const std::string resume = o["resume"];
  if (!resume.empty()) {
    std::ifstream in(fs::path(resume) / "state.txt");
    in >> job.step;
    job.resumed = true;
  }
  Say({{"type", "phase"}, {"attempt", job.name}, {"phase", "TRAINING"}});
  Say({{"type", "plan"},
       {"attempt", job.name},
       {"plan", {{"base_bytes", 1}}},
       {"planned_steps", job.planned},
       {"report", {{"rows", 3}}},
       {"numerics_id", "fake/cpu/fake"}});
  return job;
}

// As a kernel's own bug would; without a sanitizer's report, which run_tests.py takes for a finding.
void Crash() {
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// One step; false when the job is over.
bool Turn(Job& job) {
  ++job.step;
  if (!job.resumed && job.step == WishedStep(job, "crash")) Crash();
  if (!job.resumed && job.step == WishedStep(job, "dies")) {
    WriteText(DeadFile(), "");
    Crash();
  }
  if (job.step == WishedStep(job, "nonsense")) {
    (void)!write(kSocket, "hello there\n", 12);
    return true;
  }
  if (job.step == WishedStep(job, "fail")) {
    Say({{"type", "failed"},
         {"attempt", job.name},
         {"reason", "LOSS_NOT_FINITE"},
         {"message", "the loss is nan"},
         {"infrastructure", false}});
    return false;
  }
  Say({{"type", "step"},
       {"attempt", job.name},
       {"step", job.step},
       {"loss", 1.0 / static_cast<double>(job.step)},
       {"grad_norm", 0.5},
       {"learning_rate", 1e-4},
       {"tokens", 100},
       {"target_tokens", 50},
       {"step_time_us", 1000},
       {"time_us", job.step},
       {"epoch", 0.1},
       {"used_bytes", 1000}});
  if (job.wish.find("slow") != std::string::npos) usleep(20'000);
  if (job.step >= job.planned) {
    const fs::path dir = fs::path(job.dir) / "adapter";
    fs::create_directories(dir);
    WriteText(dir / "adapter_model.safetensors", "adapter after " + std::to_string(job.step));
    WriteText(dir / "adapter_config.json", "{}");
    Say({{"type", "finished"},
         {"attempt", job.name},
         {"step", job.step},
         {"dir", dir.string()},
         {"files", json::array()},
         {"stop_reason", "completed"}});
    return false;
  }
  if (job.checkpoint_asked || job.step % job.save_steps == 0) SaveCheckpoint(job);
  job.checkpoint_asked = false;
  return true;
}

void Command(const json& o, std::map<std::string, Job>& jobs) {
  const std::string type = o["type"];
  if (type == "shutdown") std::exit(0);
  const std::string name = o["attempt"];
  if (type == "attach") {
    jobs[name] = Attach(o);
    return;
  }
  const auto it = jobs.find(name);
  if (it == jobs.end()) return;
  if (type == "pause" || type == "resume") it->second.paused = type == "pause";
  if (type == "checkpoint") it->second.checkpoint_asked = true;
  if (type == "detach") {
    it->second.leaving = true;
    it->second.leave_with_checkpoint = o.value("checkpoint", false);
  }
}

void Turns(std::map<std::string, Job>& jobs) {
  for (auto it = jobs.begin(); it != jobs.end();) {
    Job& job = it->second;
    if (job.leaving) {
      if (job.leave_with_checkpoint && job.step > 0) SaveCheckpoint(job);
      Say({{"type", "detached"}, {"attempt", job.name}, {"step", job.step}});
      it = jobs.erase(it);
    } else if (!job.paused && !Turn(job)) {
      it = jobs.erase(it);
    } else {
      ++it;
    }
  }
}

int Serve() {
  Say({{"type", "hello"},
       {"version", 1},
       {"build", "fake"},
       {"numerics_id", "fake/cpu/fake"},
       {"profile", kProfile}});
  Say({{"type", "base"},
       {"digest", std::string(64, 'b')},
       {"bytes", 1000},
       {"seconds", 0.1},
       {"cached", false}});
  std::map<std::string, Job> jobs;
  std::string buffer;
  while (true) {
    bool busy = false;
    for (const auto& [name, job] : jobs) busy |= !job.paused || job.leaving;
    pollfd wait{kSocket, POLLIN, 0};
    if (poll(&wait, 1, busy ? 0 : 1000) > 0) {
      char chunk[4096];
      const ssize_t got = read(kSocket, chunk, sizeof chunk);
      if (got <= 0) return 0;
      buffer.append(chunk, static_cast<size_t>(got));
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
        Command(json::parse(buffer.substr(0, end)), jobs);
      }
    }
    Turns(jobs);
  }
}

int Validate(int argc, char** argv) {
  std::ifstream in(FlagValue(argc, argv, "--dataset"));
  long rows = 0;
  for (std::string line; std::getline(in, line);) {
    ++rows;
    if (line.find("nothing") != std::string::npos) {
      std::fprintf(stderr, "nibble-engine: nothing to learn (NO_SUPERVISED_TOKENS)\n");
      return 1;
    }
  }
  WriteText(FlagValue(argc, argv, "--out"), json({{"rows", rows}, {"planned_steps", 10}}).dump());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if ((command == "serve" || command == "profile") && !DeadFile().empty() && fs::exists(DeadFile())) {
    std::fprintf(stderr, "nibble-engine: the fake device has fallen off the bus\n");
    return 1;
  }
  if (command == "serve") return Serve();
  if (command == "profile") {
    json profile = kProfile;
    if (FlagValue(argc, argv, "--device").rfind("cuda", 0) == 0) {
      profile["backend"] = "cuda";
      profile["capacity_bytes"] = int64_t{7} << 30;
    }
    std::printf("%s\n", profile.dump().c_str());
    return 0;
  }
  if (command == "devices") {
    const json gpu = {{"index", 0},          {"device", "cuda:0"},
                      {"uuid", "GPU-1"},     {"name", "Fake GPU"},
                      {"driver", "1.2"},     {"memory_bytes", int64_t{8} << 30},
                      {"capability", "9.0"}};
    std::printf("%s\n", json({{"devices", {gpu}}, {"why", ""}}).dump().c_str());
    return 0;
  }
  if (command == "validate") return Validate(argc, argv);
  return 2;
}
