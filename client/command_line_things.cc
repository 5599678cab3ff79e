// The flags of what jobs use and leave: data sets, models, adapters, workers.
#include "client/command_line.h"

namespace nibble::client {
namespace {

CLI::App* AddGet(CLI::App* group, const char* description, Commands& c,
                 int (*body)(const Globals&, const std::string&)) {
  auto* get = Add(group, "get", description, c, [&c, body] { return body(c.g, c.name); });
  get->add_option("name", c.name, "its name")->required();
  return get;
}

void AddRemove(CLI::App* group, const char* description, Commands& c,
               int (*body)(const Globals&, const std::vector<std::string>&)) {
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
  Add(dataset, "ls", "List data sets", c, [&c] { return DatasetList(c.g); })->alias("list");
  AddGet(dataset, "Show a data set: rows, format, size", c, DatasetGet);
  auto* preview = Add(dataset, "preview", "Show the first rows", c,
                      [&c] { return DatasetPreview(c.g, c.name, c.rows); });
  preview->add_option("name", c.name, "its name")->required();
  preview->add_option("--rows", c.rows, "how many")->check(AtLeast(1))->capture_default_str();
  auto* validate = Add(dataset, "validate", "Count tokens with a model's tokenizer", c,
                       [&c] { return DatasetValidate(c.g, c.name, c.model); });
  validate->add_option("name", c.name, "its name")->required();
  validate->add_option("--model", c.model, "the model's name")->required();
  AddRemove(dataset, "Remove data sets that no unfinished job needs", c, DatasetRemove);

  CLI::App* model = app.add_subcommand("model", "Base models on the server");
  auto* reg = Add(model, "register", "Register a directory in Hugging Face layout", c,
                  [&c] { return ModelRegister(c.g, c.directory, c.name, c.on_server); });
  reg->alias("add");
  reg->add_option("directory", c.directory, "with config.json, *.safetensors, tokenizer.json")
      ->required();
  reg->add_option("--name", c.name, "its name (default: chosen by the server)");
  reg->add_flag("--on-server", c.on_server,
                "the directory is on the server's machine, below its --model-root: nothing is sent");
  Add(model, "ls", "List base models", c, [&c] { return ModelList(c.g); })->alias("list");
  AddGet(model, "Show a base model: files, architecture, size", c, ModelGet)->alias("inspect");
  AddRemove(model, "Remove base models that no unfinished job needs", c, ModelRemove);

  CLI::App* adapter = app.add_subcommand("adapter", "Adapters on the server");
  Add(adapter, "ls", "List adapters", c, [&c] { return AdapterList(c.g); })->alias("list");
  AddGet(adapter, "Show an adapter: base, files, digests", c, AdapterGet);
  AddRemove(adapter, "Remove adapters", c, AdapterRemove);

  CLI::App* worker = app.add_subcommand("worker", "Workers");
  Add(worker, "ls", "List workers and their devices", c, [&c] { return WorkerList(c.g, c.all_workers); })
      ->alias("list")
      ->add_flag("-a,--all", c.all_workers, "those lost for more than a day too");
  for (const bool drain : {true, false}) {
    Add(worker, drain ? "drain" : "undrain",
        drain ? "Let its jobs move elsewhere" : "Give it jobs again", c,
        [&c, drain] { return WorkerDrain(c.g, c.name, drain); })
        ->add_option("name", c.name, "its name")
        ->required();
  }
  AddRemove(worker, "Forget workers that are lost for good", c, WorkerRemove);
}

}  // namespace nibble::client
