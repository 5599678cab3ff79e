#include "client/interrupt.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

namespace nibble::client {
namespace {

volatile std::sig_atomic_t interrupted = 0;
// What the handler writes: it may neither allocate nor lock.
char note_text[1024];
volatile std::sig_atomic_t note_bytes = 0;
struct sigaction before_int, before_term;

void SayAndEnd(int signal) {
  (void)!write(STDERR_FILENO, note_text, static_cast<size_t>(note_bytes));
  _exit(128 + signal);
}

void Remember(int) {
  if (interrupted) _exit(kExitInterrupted);
  interrupted = 1;
}

}  // namespace

InterruptNote::InterruptNote(const Terminal& terminal, const std::string& note) {
  std::string text = terminal.live_errors ? "\r\x1b[2K" : "";
  if (!terminal.quiet) text += note + "\n";
  text.resize(std::min(text.size(), sizeof note_text));
  std::memcpy(note_text, text.data(), text.size());
  note_bytes = static_cast<std::sig_atomic_t>(text.size());
  struct sigaction action {};
  action.sa_handler = SayAndEnd;
  sigaction(SIGINT, &action, &before_int);
  sigaction(SIGTERM, &action, &before_term);
}

InterruptNote::~InterruptNote() {
  sigaction(SIGINT, &before_int, nullptr);
  sigaction(SIGTERM, &before_term, nullptr);
}

void InstallInterrupt() {
  struct sigaction action {};
  action.sa_handler = Remember;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }

}  // namespace nibble::client
