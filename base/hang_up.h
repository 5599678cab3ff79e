// What a closed terminal means to this process.
#pragma once

#include <csignal>

namespace nibble {

// Whether whoever started this process wants it to outlive its terminal (nohup): SIGHUP is ignored then, and
// has to stay so. Asked before anything changes what it does; one that is blocked is waited for all the same.
inline bool OutlivesTerminal() {
  struct sigaction now {};
  return sigaction(SIGHUP, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
}

}  // namespace nibble
