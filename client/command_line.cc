#include "client/command_line.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nibble::client {

CLI::Validator AtLeast(int low) {
  return CLI::Validator(
      [low](const std::string& text) -> std::string {
        int value = 0;
        const bool good = absl::SimpleAtoi(text, &value) && value >= low;
        return good ? "" : absl::StrCat("must be a whole number, at least ", low, ", got ", text);
      },
      "");
}

CLI::App* Add(CLI::App* parent, const std::string& name, const std::string& description,
              Commands& c, std::function<int()> body) {
  CLI::App* command = parent->add_subcommand(name, description);
  if (body) command->callback([&c, body = std::move(body)] { c.chosen = body; });
  return command;
}

}  // namespace nibble::client
