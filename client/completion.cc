#include "client/completion.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace nibble::client {
namespace {

std::string Names(const std::vector<CommandShape>& commands) {
  return absl::StrJoin(commands, " ",
                       [](std::string* out, const CommandShape& c) { out->append(c.name); });
}

std::string Quoted(const std::string& text) { return absl::StrReplaceAll(text, {{"'", "'\\''"}}); }

// One case per command path, "run" or "dataset push": what may follow it.
void BashCases(const CommandShape& at, const std::string& path, std::string& out) {
  absl::StrAppend(&out, "    \"", path, "\") words=\"", Names(at.commands),
                  at.commands.empty() ? "" : " ", absl::StrJoin(at.flags, " "), "\" ;;\n");
  for (const CommandShape& c : at.commands)
    BashCases(c, path.empty() ? c.name : path + " " + c.name, out);
}

std::string Bash(const CommandShape& root) {
  std::string cases;
  BashCases(root, "", cases);
  std::string groups;
  for (const CommandShape& c : root.commands) {
    if (!c.commands.empty()) absl::StrAppend(&groups, groups.empty() ? "" : "|", c.name);
  }
  return absl::StrCat(R"(# bash completion for nibble; load with: source <(nibble completion bash)
_nibble() {
  local cur="${COMP_WORDS[COMP_CWORD]}" path="" word words i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${COMP_WORDS[i]}"
    case "$word" in -*) continue ;; esac
    if [[ -z "$path" ]]; then
      path="$word"
      case "$path" in )",
                      groups, R"() ;; *) break ;; esac
    else
      path="$path $word"
      break
    fi
  done
  case "$path" in
)",
                      cases, R"(    *) words="" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ "$cur" != -* && ( -z "$words" || ${#COMPREPLY[@]} -eq 0 ) ]]; then
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -o filenames -F _nibble nibble
)");
}

std::string Zsh(const CommandShape& root) {
  return absl::StrCat(
      "#compdef nibble\n# zsh completion for nibble; load with: source <(nibble completion zsh)\n",
      "autoload -U +X bashcompinit && bashcompinit\n", Bash(root));
}

void FishLines(const CommandShape& at, const std::string& condition, std::string& out) {
  for (const CommandShape& c : at.commands) {
    absl::StrAppend(&out, "complete -c nibble -f -n '", condition, "' -a '", c.name, "' -d '",
                    Quoted(c.description), "'\n");
  }
  for (const std::string& flag : at.flags) {
    const bool is_long = flag.rfind("--", 0) == 0;
    absl::StrAppend(&out, "complete -c nibble -n '", condition, "' ", is_long ? "-l " : "-s ",
                    flag.substr(is_long ? 2 : 1), "\n");
  }
}

std::string Fish(const CommandShape& root) {
  std::string out = "# fish completion for nibble; load with: nibble completion fish | source\n";
  FishLines(root, "__fish_use_subcommand", out);
  for (const CommandShape& c : root.commands)
    FishLines(c, "__fish_seen_subcommand_from " + c.name, out);
  return out;
}

}  // namespace

std::string CompletionScript(const CommandShape& root, const std::string& shell) {
  if (shell == "bash") return Bash(root);
  if (shell == "zsh") return Zsh(root);
  if (shell == "fish") return Fish(root);
  return "";
}

}  // namespace nibble::client
