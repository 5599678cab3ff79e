// How the command's flags are spelled: what each subcommand takes, and what runs when it was asked for.
// Included by command_line*.cc and main.cc only.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "client/commands.h"

namespace nibble::client {

// What the flags are read into. Only one subcommand is asked for, so several may share a field.
struct Commands {
  Globals g;
  SubmitArgs submit;
  bool detach = false;
  ListArgs list;
  PlanArgs plan;
  bool follow = false;
  int rows = 5;
  bool all_workers = false;
  int wait_timeout_s = 0;
  std::string wait_for;
  MetricsArgs metrics;
  UpArgs up;
  std::string job;
  UpdateArgs update;
  int max_devices = 20;
  std::string name;
  std::string file;
  std::string directory;
  bool on_server = false;
  std::string model;
  std::string shell;
  std::vector<std::string> names;
  std::string base;
  std::string adapter;
  std::function<int()> chosen;
};

// A whole number from `low` on: CLI11 itself takes negative ones without a word.
CLI::Validator AtLeast(int low);
// A subcommand that runs `body` when it was the one asked for.
CLI::App* Add(CLI::App* parent, const std::string& name, const std::string& description, Commands& c,
              std::function<int()> body);

void AddJobCommands(CLI::App& app, Commands& c);  // recipes, plans, and what is asked about jobs
void AddJobVerbs(CLI::App& app, Commands& c);     // what jobs are told, waiting, downloads
void AddThings(CLI::App& app, Commands& c);       // data sets, models, adapters, workers
void AddMachine(CLI::App& app, Commands& c);      // nibble up, and commands of the other binaries

}  // namespace nibble::client
