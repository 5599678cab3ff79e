#include "client/why_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/output.h"
#include "client/plan_report.h"
#include "client/report_lines.h"
#include "client/watch.h"

namespace nibble::client {
namespace {

using Device = v1::DeviceExplanation;

constexpr int kSpeedColumn = 4;

std::string Names(const google::protobuf::RepeatedPtrField<std::string>& names) {
  constexpr int kShown = 3;
  std::vector<std::string> shown;
  for (int i = 0; i < std::min(names.size(), kShown); ++i) shown.push_back(ShortName(names[i]));
  std::string text = absl::StrJoin(shown, ", ");
  if (names.size() > kShown) absl::StrAppend(&text, " and ", names.size() - kShown, " more");
  return text;
}

std::string What(const Device& d) {
  const std::string holders = d.held_by().empty() ? "" : absl::StrCat(", held by ", Names(d.held_by()));
  switch (d.verdict()) {
    case Device::FITS: return "nothing: it fits";
    case Device::AWAY: return "its worker takes no work now";
    case Device::OTHER_NUMERICS: return "other numerics than the job began with";
    case Device::NO_PLAN:
      return d.refusal().empty() ? "no plan for such a device"
                                 : absl::StrCat("cannot take it: ", InRecipeWords(d.refusal()));
    case Device::TOO_SMALL:
      return absl::StrCat("too small: ", FormatBytes(d.capacity_bytes()), " in all");
    case Device::NO_BYTES:
      return absl::StrCat(FormatBytes(d.needed_bytes() - d.free_bytes()), " too few", holders);
    case Device::NO_PLACE: return absl::StrCat("no place for another job or base", holders);
    case Device::BUSY: return absl::StrCat("busy: ", d.load_milli() / 10, " % of its time", holders);
    case Device::RESERVED: return absl::StrCat("kept for ", ShortName(d.reserved_for()));
    default: return "unknown";
  }
}

std::string DevicesTable(const v1::ExplainJobResponse& why, int64_t now_unix_us, const Style& style) {
  std::vector<std::vector<std::string>> rows = {
      {"  DEVICE", "NEEDS", "FREE", "OF", "WHAT IS IN THE WAY", "ROOM"}};
  // Only where devices differ.
  const bool speeds = std::any_of(why.devices().begin(), why.devices().end(),
                                  [](const Device& d) { return d.speed_percent() > 0; });
  if (speeds) rows[0].insert(rows[0].begin() + kSpeedColumn, "SPEED");
  for (const Device& d : why.devices()) {
    std::string room = d.verdict() == Device::FITS ? "now" : "-";
    if (!d.until().empty()) {
      room = absl::StrCat("when ", Names(d.until()), d.until_size() > 1 ? " end" : " ends");
      if (d.has_expected_start_time())
        room = absl::StrCat(WhenText(d.expected_start_time(), now_unix_us), " ", room);
    } else if (d.has_expected_start_time()) {
      room = WhenText(d.expected_start_time(), now_unix_us);
    }
    rows.push_back({absl::StrCat("  ", ShortName(d.worker()), "/", d.device()),
                    d.needed_bytes() > 0 ? FormatBytes(d.needed_bytes()) : "-",
                    FormatBytes(d.free_bytes()), FormatBytes(d.capacity_bytes()), What(d), room});
    if (!speeds) continue;
    rows.back().insert(rows.back().begin() + kSpeedColumn,
                       d.speed_percent() > 0 ? absl::StrCat(d.speed_percent(), " %") : "-");
  }
  return speeds ? Table(rows, style, {1, 2, 3, kSpeedColumn}) : Table(rows, style, {1, 2, 3});
}

void Changes(const v1::ExplainJobResponse& why, std::string& out) {
  for (const v1::Counterfactual& c : why.counterfactuals()) {
    absl::StrAppend(&out, "  ", OverridesText(c.change()), " (", c.change().cost(), "): needs ",
                    FormatBytes(c.change().total_bytes()), ", fits ", ShortName(c.worker()), "/",
                    c.device(), " now\n");
  }
}

}  // namespace

std::string WhyText(const v1::ExplainJobResponse& why, int64_t now_unix_us, const Style& style) {
  std::string out;
  Heading(out, style, ShortName(why.name()));
  Line(out, "state", StateText(style, why.state()));
  if (why.state() == v1::QUEUED) {
    if (why.queue_position() > 0)
      Line(out, "place in the queue", absl::StrCat(why.queue_position()));
    Line(out, "priority",
         absl::StrCat(why.priority(), why.overdue() ? ", overdue: first in its project" : ""));
    Line(out, "waits since", TimeText(ToUnixUs(why.queued_time())));
    Line(out, "project",
         absl::StrFormat("%s, has had %.1f %% of the fleet by its weight", why.project(),
                         100 * why.project_share()));
    if (!why.before().empty()) {
      Line(out, "before it",
           absl::StrCat(ShortName(why.before()), ", for which ", why.before_at(), " is kept"));
    }
  }
  const char* label = "why";
  for (const auto part : absl::StrSplit(why.state_reason(), "; ", absl::SkipEmpty())) {
    Line(out, label, std::string(part));
    label = "";
  }
  if (why.state_reason().empty())
    Line(out, "why", IsTerminal(why.state()) ? "it has ended; nibble get tells how" : "nothing holds it up");
  if (why.devices_size() > 0) {
    Heading(out, style, "devices");
    out += DevicesTable(why, now_unix_us, style);
    if (why.devices_size() < why.devices_total())
      absl::StrAppend(&out, "  and ", why.devices_total() - why.devices_size(), " more (--devices)\n");
  }
  if (why.counterfactuals_size() > 0) {
    Heading(out, style, "would start now with one of");
    Changes(why, out);
  }
  return out;
}

}  // namespace nibble::client
