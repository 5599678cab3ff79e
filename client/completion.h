// Shell completion scripts, made from the same command tree the parser uses.
#pragma once

#include <string>
#include <vector>

namespace nibble::client {

struct CommandShape {
  std::string name;  // "" for the root
  std::string description;
  std::vector<std::string> flags;  // with their dashes
  std::vector<CommandShape> commands;
};

// `shell` is bash, zsh or fish; empty for another one.
std::string CompletionScript(const CommandShape& root, const std::string& shell);

}  // namespace nibble::client
