// The flags of what jobs use and leave: data sets, models, adapters, workers.
#include "client/command_line.h"

namespace nibble::client {
namespace {

void AddNamed(CLI::App* group, const std::string& name, const std::string& description, Commands& c,
              int (*body)(const Globals&, const std::string&)) {
  Add(group, name, description, c, [&c, body] { return body(c.g, c.name); })
      ->add_option("name", c.name, "its name")
      ->required();
}

void AddRemove(CLI::App* group, Commands& c,
               int (*body)(const Globals&, const std::vector<std::string>&),
               const char* description = "Remove") {
  Add(group, "rm", description, c, [&c, body] { return body(c.g, c.names); })
      ->add_option("names", c.names, "their names")
      ->required();
}

}  // namespace

void AddThings(CLI::App& app, Commands& c) {
  CLI::App* dataset = app.add_subcommand("dataset", "Data sets on the server");
  auto* push = Add(dataset, "push", "Upload a JSONL file and check it", c,
                   [&c] { return DatasetPush(c.g, c.file, c.name); });
  push->add_option("file", c.file, "JSONL file")->required();
  push->add_option("--name", c.name, "its name (default: chosen by the server)");
  Add(dataset, "ls", "List", c, [&c] { return DatasetList(c.g); })->alias("list");
  AddNamed(dataset, "get", "Show one", c, DatasetGet);
  auto* preview = Add(dataset, "preview", "Show the first rows", c,
                      [&c] { return DatasetPreview(c.g, c.name, c.rows); });
  preview->add_option("name", c.name, "its name")->required();
  preview->add_option("--rows", c.rows, "how many")->check(AtLeast(1))->capture_default_str();
  auto* validate = Add(dataset, "validate", "Count tokens with a model's tokenizer", c,
                       [&c] { return DatasetValidate(c.g, c.name, c.model); });
  validate->add_option("name", c.name, "its name")->required();
  validate->add_option("--model", c.model, "models/{id}")->required();
  AddRemove(dataset, c, DatasetRemove);

  CLI::App* model = app.add_subcommand("model", "Base models on the server");
  auto* reg = Add(model, "register", "Register a directory in Hugging Face layout", c,
                  [&c] { return ModelRegister(c.g, c.directory, c.name, c.on_server); });
  reg->alias("add");
  reg->add_option("directory", c.directory, "with config.json, *.safetensors, tokenizer.json")
      ->required();
  reg->add_option("--name", c.name, "its name (default: chosen by the server)");
  reg->add_flag("--on-server", c.on_server,
                "the directory is on the server's machine, below its --model-root: nothing is sent");
  Add(model, "ls", "List", c, [&c] { return ModelList(c.g); })->alias("list");
  AddNamed(model, "get", "Show one", c, ModelGet);
  AddNamed(model, "inspect", "Show one", c, ModelGet);
  AddRemove(model, c, ModelRemove);

  CLI::App* adapter = app.add_subcommand("adapter", "Adapters on the server");
  Add(adapter, "ls", "List", c, [&c] { return AdapterList(c.g); })->alias("list");
  AddNamed(adapter, "get", "Show one", c, AdapterGet);
  AddRemove(adapter, c, AdapterRemove);

  CLI::App* worker = app.add_subcommand("worker", "Workers");
  Add(worker, "ls", "List", c, [&c] { return WorkerList(c.g, c.all_workers); })
      ->alias("list")
      ->add_flag("-a,--all", c.all_workers, "those lost for more than a day too");
  for (const bool drain : {true, false}) {
    Add(worker, drain ? "drain" : "undrain",
        drain ? "Let its jobs move elsewhere" : "Give it jobs again", c,
        [&c, drain] { return WorkerDrain(c.g, c.name, drain); })
        ->add_option("name", c.name, "its name")
        ->required();
  }
  AddRemove(worker, c, WorkerRemove, "Forget workers that are lost for good");
}

}  // namespace nibble::client
