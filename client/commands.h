// What each command does, apart from how its flags are spelled (main.cc). Each returns an exit
// code.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/output.h"
#include "client/submit.h"

namespace nibble::client {

struct Globals {
  std::string server;  // as given; empty = found out
  std::string token_file;
  std::string ca_file;
  std::string data_dir;
  std::string output = "table";
  bool quiet = false;
  bool no_color = false;
  int timeout_s = 30;
  Terminal terminal;  // derived from the above
};

// Whether people read the output, not programs.
inline bool IsText(const Globals& g) {
  return g.terminal.form == Form::kTable || g.terminal.form == Form::kName;
}

// --server, NIBBLE_SERVER, the address file of a running `nibble up`, 127.0.0.1:7070: in this
// order.
std::string FindServer(const Globals& globals);
std::string DataDir(const Globals& globals);
// Where the server of `nibble up` keeps its things, and what it writes when it is ready.
std::string ServerDir(const std::string& data_dir);
std::string AddressFile(const std::string& data_dir);
struct ServerAddress {
  std::string grpc;  // "" when no server runs there
  std::string http;
};
ServerAddress ReadAddress(const std::string& data_dir);
absl::StatusOr<std::unique_ptr<Client>> Open(const Globals& globals);
// What the server's last answer warned of, if it did.
void NoteWarning(const Terminal& terminal, const Client& client);
// Runs `body` with a connection; prints whatever error comes out, and what the server warns of.
template <typename Body>
int WithClient(const Globals& g, const Body& body) {
  const auto client = Open(g);
  if (!client.ok()) return PrintError(g.terminal, client.status());
  const absl::StatusOr<int> code = body(**client);
  NoteWarning(g.terminal, **client);
  return code.ok() ? *code : PrintError(g.terminal, code.status());
}

// Jobs.
int RunCommand(const Globals& g, const SubmitArgs& args, bool detach);
int SubmitCommand(const Globals& g, const SubmitArgs& args);
int ValidateCommand(const Globals& g, const SubmitArgs& args);
// What a worker found in the data, as JSON; "" when none has looked within the call timeout.
absl::StatusOr<std::string> AwaitDataReport(Client& client, const Globals& g,
                                            const v1::ValidateDatasetRequest& request);
struct ListArgs {
  bool all = false;
  bool watch = false;
  std::vector<std::string> states;
  std::vector<std::string> labels;  // k=v
  int limit = 100;
};
int ListCommand(const Globals& g, const ListArgs& args);
int GetCommand(const Globals& g, const std::string& job);
int WhyCommand(const Globals& g, const std::string& job, int max_devices);
int DescribeCommand(const Globals& g, const std::string& job);
int WatchCommand(const Globals& g, const std::string& job);
int EventsCommand(const Globals& g, const std::string& job, bool follow);
struct MetricsArgs {
  std::string job;
  std::string names = "loss,eval_loss";
  bool plot = false;
  bool csv = false;
  bool phases = false;  // where the time of the steps went, instead of series
  int max_points = 1000;
};
int MetricsCommand(const Globals& g, const MetricsArgs& args);
enum class Verb { kCancel, kPause, kResume, kRemove };
int VerbCommand(const Globals& g, Verb verb, const std::vector<std::string>& jobs);
struct UpdateArgs {
  std::string job;
  std::optional<int32_t> priority;
  bool allow_numerics_change = false;
};
// Changes a job that waits or runs.
int UpdateCommand(const Globals& g, const UpdateArgs& args);
int WaitCommand(const Globals& g, const std::vector<std::string>& jobs, const std::string& state,
                int timeout_s);
int CheckpointsCommand(const Globals& g, const std::string& job);
int DownloadCommand(const Globals& g, const std::string& job, const std::string& directory);

// Data sets, models, adapters, workers.
int DatasetPush(const Globals& g, const std::string& file, const std::string& name);
int DatasetList(const Globals& g);
int DatasetGet(const Globals& g, const std::string& name);
int DatasetPreview(const Globals& g, const std::string& name, int rows);
int DatasetValidate(const Globals& g, const std::string& name, const std::string& model);
int DatasetRemove(const Globals& g, const std::vector<std::string>& names);
// on_server: the directory is one of the server's machine, below its --model-root; nothing is sent.
int ModelRegister(const Globals& g, const std::string& directory, const std::string& name, bool on_server);
int ModelList(const Globals& g);
int ModelGet(const Globals& g, const std::string& name);
int ModelRemove(const Globals& g, const std::vector<std::string>& names);
int AdapterList(const Globals& g);
int AdapterGet(const Globals& g, const std::string& name);
int AdapterRemove(const Globals& g, const std::vector<std::string>& names);
// `all`: also those that have been lost for more than a day.
int WorkerList(const Globals& g, bool all);
int WorkerDrain(const Globals& g, const std::string& name, bool drain);
int WorkerRemove(const Globals& g, const std::vector<std::string>& names);

// Recipes and their plans (commands_plan.cc).
struct PlanArgs {
  std::string recipe;  // may be empty with model_config
  std::vector<std::string> overrides;
  std::string model_config;  // config.json or its directory: plan for a model nobody registered
  std::string device;        // worker or card to show in full; "" = the first that fits
  std::string svg;           // file to write
  bool methods = false;
  bool plot = false;
};
int PlanCommand(const Globals& g, const PlanArgs& args);
// The recipe with every default written out.
int RecipeCommand(const Globals& g, const std::string& recipe,
                  const std::vector<std::string>& overrides);
// JSON Schema of recipes, for editors.
int SchemaCommand(const Globals& g);

// This machine.
struct UpArgs {
  std::string listen = "127.0.0.1:7070";
  std::string http = "127.0.0.1:7071";
  int threads = 0;
  std::string memory;
  bool no_worker = false;
  bool detach = false;
};
int UpCommand(const Globals& g, const UpArgs& args);
int DownCommand(const Globals& g);
int DoctorCommand(const Globals& g);
// Replace this process by a binary that lies beside it.
int EngineCommand(const Globals& g, const std::string& command, const std::vector<std::string>& arguments);
int TokenCommand(const Globals& g, const std::vector<std::string>& arguments);
// Lost so long ago that a list of workers is better without it.
bool IsLongLost(const v1::Worker& worker, int64_t now_unix_us);
// Beside this binary, else on PATH.
std::string SiblingBinary(const std::string& name);

}  // namespace nibble::client
