#include "client/follow.h"

#include <algorithm>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/mailbox.h"
#include "client/interrupt.h"
#include "client/patience.h"
#include "client/run_view.h"
#include "client/watch.h"

namespace nibble::client {
namespace {

constexpr int64_t kFrameUs = 100'000;
constexpr int64_t kRefreshUs = 2'000'000;
constexpr int kPastEvents = 20;

// Lines that stay, and under them the frame, redrawn in place; nothing where quiet is asked for.
class Screen {
 public:
  explicit Screen(const Terminal& terminal) : quiet_(terminal.quiet), live_(terminal.live) {}
  void Draw(const std::vector<std::string>& lines, const std::vector<std::string>& frame) {
    if (quiet_ || (lines.empty() && frame == frame_)) return;
    std::string out;
    if (live_ && !frame_.empty()) absl::StrAppend(&out, "\x1b[", frame_.size(), "A");
    if (live_) out += "\r\x1b[J";
    for (const std::string& line : lines) absl::StrAppend(&out, line, "\n");
    frame_.clear();
    if (live_) {
      for (const std::string& line : frame) absl::StrAppend(&out, line, "\n");
      frame_ = frame;
    }
    if (!out.empty()) PrintOut(out);
  }

 private:
  const bool quiet_, live_;
  std::vector<std::string> frame_;
};

// What has happened already; a watch tells only what is new: what comes after the sequence that is returned.
int64_t ApplyPast(Client& client, const std::string& name, int64_t last_sequence, RunView& view) {
  const auto past = client.ListJobEvents(name);
  if (!past.ok()) return last_sequence;
  for (int i = std::max(0, past->events_size() - kPastEvents); i < past->events_size(); ++i) {
    v1::WatchJobResponse update;
    *update.mutable_event() = past->events(i);
    view.Apply(update);
    last_sequence = past->events(i).sequence();
  }
  return last_sequence;
}

// Draws what the watch brings, and asks now and then for what no event tells, until it ends or the user goes.
void Show(Client& client, const Terminal& terminal, const std::string& name,
          Mailbox<v1::WatchJobResponse>& updates, Mailbox<std::string>& notices, RunView& view,
          Screen& screen) {
  const Clock& clock = RealClock::Get();
  bool warned = false;
  int64_t next_refresh_us = clock.NowMonotonicUs() + kRefreshUs;
  while (!Interrupted()) {
    const bool ended = updates.closed();  // asked first: what came before the end is taken below
    const auto taken = updates.Take(1024, kFrameUs);
    for (const auto& update : taken) view.Apply(update);
    for (const auto& notice : notices.Take(16, 0)) view.AddLine(notice);
    if (taken.empty() && ended) break;
    if (clock.NowMonotonicUs() >= next_refresh_us && !updates.closed()) {
      if (const auto job = client.GetJob(name); job.ok()) view.Refresh(*job);
      // Once when it begins; it counts seconds, so it is never the same words.
      if (const bool warns = !client.warning().empty(); std::exchange(warned, warns) != warns)
        view.AddLine(warns ? absl::StrCat("warning: ", client.warning()) : "the server writes again");
      next_refresh_us = clock.NowMonotonicUs() + kRefreshUs;
    }
    screen.Draw(view.TakeLines(), view.Frame(terminal.columns, clock.NowUnixUs()));
  }
}

// What is said at the end, and the exit code. `watched` is how the watch ended.
int Leave(Client& client, const Terminal& terminal, const std::string& name, const absl::Status& watched,
          RunView& view) {
  const std::string id = ShortName(name);
  if (Interrupted()) {
    PrintNote(terminal, absl::StrCat("detached; ", id, " goes on. Look again: nibble watch ", id,
                                     "   Stop it: nibble cancel ", id));
    return kExitInterrupted;
  }
  if (!watched.ok()) {
    if (IsAway(watched)) PrintNote(terminal, "the job goes on without us; look again: nibble watch " + id);
    return PrintError(terminal, watched);
  }
  if (const auto job = client.GetJob(name); job.ok()) view.Refresh(*job);
  if (!terminal.quiet) {
    for (const std::string& line : view.TakeLines()) PrintOut(line + "\n");
    for (const std::string& line : view.Summary()) PrintOut(line + "\n");
  }
  return ExitCodeOf(view.job().state());
}

}  // namespace

int FollowJob(Client& client, const Terminal& terminal, const std::string& name) {
  InstallInterrupt();
  Mailbox<v1::WatchJobResponse> updates(4096);
  Mailbox<std::string> notices(16);
  JobWatch::Options options;
  options.on_cut = [&](const absl::Status& status) {
    // A full mailbox only loses a remark about the connection.
    if (!notices.Post(
            absl::StrCat("connection lost (", PlainConnectionError(std::string(status.message())),
                         "); reconnecting")))
      return;
  };
  RunView view(terminal.style, terminal.live);
  options.after_sequence = ApplyPast(client, name, options.after_sequence, view);
  JobWatch watch(client, name, options);
  absl::Status outcome;
  std::thread reader([&] {
    outcome = watch.Run([&](const v1::WatchJobResponse& update) {
      auto copy = update;
      while (!updates.Post(std::move(copy))) {
        if (updates.closed()) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      return true;
    });
    updates.Close();
  });

  Screen screen(terminal);
  Show(client, terminal, name, updates, notices, view, screen);
  watch.Cancel();
  updates.Close();
  reader.join();
  screen.Draw(view.TakeLines(), {});
  return Leave(client, terminal, name, outcome, view);
}

}  // namespace nibble::client
