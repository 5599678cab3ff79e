#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/status.h"
#include "client/commands.h"
#include "client/follow.h"
#include "client/report.h"

namespace nibble::client {
namespace {

constexpr int kPinnedColumn = 8;

// A list in the form asked for: the message itself, names alone, or the table `rows` makes.
template <typename Items>
int PrintList(const Globals& g, const google::protobuf::Message& message, const Items& items,
              std::vector<std::vector<std::string>> rows, const std::vector<int>& right) {
  if (PrintMessage(g.terminal, message)) return kExitOk;
  if (g.terminal.form == Form::kName || g.quiet) {
    for (const auto& item : items) PrintOut(ShortName(item.name()) + "\n");
    return kExitOk;
  }
  PrintOut(Table(rows, g.terminal.style, right));
  return kExitOk;
}

int RemoveAllOf(const Globals& g, const char* collection, const std::vector<std::string>& names,
                absl::Status (Client::*remove)(const std::string&)) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    int worst = kExitOk;
    for (const std::string& name : names) {
      const absl::Status status = (client.*remove)(FullName(collection, name));
      if (!status.ok()) {
        worst = std::max(worst, PrintError(g.terminal, status));
      } else if (!g.quiet && (g.terminal.form == Form::kTable || g.terminal.form == Form::kName)) {
        PrintOut(absl::StrCat(ShortName(name), " removed\n"));
      }
    }
    (void)PrintMessage(g.terminal, v1::ListJobsResponse());
    return worst;
  });
}

int PrintDataset(const Globals& g, const v1::Dataset& d) {
  if (PrintMessage(g.terminal, d)) return kExitOk;
  if (g.terminal.form == Form::kName || g.quiet) {
    PrintOut(ShortName(d.name()) + "\n");
    return kExitOk;
  }
  PrintOut(absl::StrCat(ShortName(d.name()), "  ", d.rows(), d.rows() == 1 ? " row" : " rows", " of ",
                        d.format(), ", ", FormatBytes(d.size_bytes()), ", sha256 ", d.sha256(), "\n"));
  return kExitOk;
}

int PrintModel(const Globals& g, const v1::Model& m) {
  if (PrintMessage(g.terminal, m)) return kExitOk;
  if (g.terminal.form == Form::kName || g.quiet) {
    PrintOut(ShortName(m.name()) + "\n");
    return kExitOk;
  }
  PrintOut(absl::StrCat(ShortName(m.name()), "  ", Printable(m.display_name()), "  ", m.model_type(), ", ",
                        FormatCount(static_cast<double>(m.parameters())), " parameters",
                        m.root_path().empty() ? "" : ", at " + Printable(m.root_path()), "\n"));
  for (const auto& f : m.files())
    PrintOut(absl::StrCat("  ", f.name(), "  ", FormatBytes(f.size_bytes()), "\n"));
  return kExitOk;
}

std::string WorkerStateText(const Style& style, v1::WorkerState state) {
  const std::string name =
      v1::WorkerState_IsValid(state) ? v1::WorkerState_Name(state) : absl::StrCat(state);
  switch (state) {
    case v1::IDLE:
      return Paint(style, Ink::kGreen, name);
    case v1::BUSY:
      return Paint(style, Ink::kBlue, name);
    case v1::LOST:
      return Paint(style, Ink::kRed, name);
    default:
      return Paint(style, Ink::kYellow, name);
  }
}

}  // namespace

int DatasetPush(const Globals& g, const std::string& file, const std::string& name) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Dataset dataset, PushDataset(client, g.terminal, file, name));
    return PrintDataset(g, dataset);
  });
}

int DatasetList(const Globals& g) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::ListDatasetsResponse list, client.ListDatasets());
    std::vector<std::vector<std::string>> rows = {
        {"NAME", "FILE", "ROWS", "FORMAT", "SIZE", "CREATED"}};
    const int64_t now_us = RealClock::Get().NowUnixUs();
    for (const auto& d : list.datasets()) {
      rows.push_back({ShortName(d.name()), Printable(d.display_name()), absl::StrCat(d.rows()), d.format(),
                      FormatBytes(d.size_bytes()), AgeText(d.create_time(), now_us)});
    }
    return PrintList(g, list, list.datasets(), std::move(rows), {2, 4});
  });
}

int DatasetGet(const Globals& g, const std::string& name) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Dataset dataset, client.GetDataset(FullName("datasets", name)));
    return PrintDataset(g, dataset);
  });
}

int DatasetPreview(const Globals& g, const std::string& name, int rows) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::PreviewDatasetResponse preview,
                     client.PreviewDataset(FullName("datasets", name), rows));
    if (PrintMessage(g.terminal, preview)) return kExitOk;
    for (const std::string& row : preview.rows()) PrintOut(row + "\n");
    return kExitOk;
  });
}

int DatasetValidate(const Globals& g, const std::string& name, const std::string& model) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    v1::ValidateDatasetRequest request;
    request.set_name(FullName("datasets", name));
    request.set_base_model(FullName("models", model));
    ASSIGN_OR_RETURN(const std::string report, AwaitDataReport(client, g, request));
    if (report.empty()) {
      PrintNote(g.terminal,
                "no worker has read the data within --call-timeout; ask again later (nibble worker ls)");
      return kExitTimeout;
    }
    PrintOut(g.terminal.form == Form::kJson ? report + "\n" : DataReportText(report, g.terminal.style));
    return kExitOk;
  });
}

int DatasetRemove(const Globals& g, const std::vector<std::string>& names) {
  return RemoveAllOf(g, "datasets", names, &Client::DeleteDataset);
}

int ModelRegister(const Globals& g, const std::string& directory, const std::string& name, bool on_server) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Model model,
                     on_server ? RegisterOnServer(client, g.terminal, directory, name)
                               : RegisterDirectory(client, g.terminal, directory, "", name));
    return PrintModel(g, model);
  });
}

int ModelList(const Globals& g) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::ListModelsResponse list, client.ListModels());
    std::vector<std::vector<std::string>> rows = {
        {"NAME", "MODEL", "TYPE", "PARAMETERS", "CREATED"}};
    const int64_t now_us = RealClock::Get().NowUnixUs();
    for (const auto& m : list.models()) {
      rows.push_back({ShortName(m.name()), Printable(m.display_name()), m.model_type(),
                      FormatCount(static_cast<double>(m.parameters())),
                      AgeText(m.create_time(), now_us)});
    }
    return PrintList(g, list, list.models(), std::move(rows), {3});
  });
}

int ModelGet(const Globals& g, const std::string& name) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Model model, client.GetModel(FullName("models", name)));
    return PrintModel(g, model);
  });
}

int ModelRemove(const Globals& g, const std::vector<std::string>& names) {
  return RemoveAllOf(g, "models", names, &Client::DeleteModel);
}

int AdapterList(const Globals& g) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::ListAdaptersResponse list, client.ListAdapters());
    std::vector<std::vector<std::string>> rows = {{"NAME", "JOB", "BASE", "SIZE", "CREATED"}};
    const int64_t now_us = RealClock::Get().NowUnixUs();
    for (const auto& a : list.adapters()) {
      int64_t bytes = 0;
      for (const auto& f : a.files()) bytes += f.size_bytes();
      rows.push_back({ShortName(a.name()), ShortName(a.job()), ShortName(a.base_model()),
                      FormatBytes(bytes), AgeText(a.create_time(), now_us)});
    }
    return PrintList(g, list, list.adapters(), std::move(rows), {3});
  });
}

int AdapterGet(const Globals& g, const std::string& name) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(const v1::Adapter adapter, client.GetAdapter(FullName("adapters", name)));
    if (PrintMessage(g.terminal, adapter)) return kExitOk;
    PrintOut(absl::StrCat(ShortName(adapter.name()), "  of ", ShortName(adapter.job()), " on ",
                          adapter.base_model(), "\n"));
    for (const auto& f : adapter.files()) {
      PrintOut(absl::StrCat("  ", f.name(), "  ", FormatBytes(f.size_bytes()), "  sha256 ",
                            f.sha256(), "\n"));
    }
    return kExitOk;
  });
}

int AdapterRemove(const Globals& g, const std::vector<std::string>& names) {
  return RemoveAllOf(g, "adapters", names, &Client::DeleteAdapter);
}

// "830 GFLOP/s".
std::string SpeedText(int64_t mflop_per_s) {
  if (mflop_per_s <= 0) return "-";
  const double gflops = static_cast<double>(mflop_per_s) / 1e3;
  return gflops < 1e3 ? absl::StrFormat("%.0f GFLOP/s", gflops)
                      : absl::StrFormat("%.1f TFLOP/s", gflops / 1e3);
}

bool IsLongLost(const v1::Worker& worker, int64_t now_unix_us) {
  constexpr int64_t kDayUs = int64_t{86'400} * 1'000'000;
  return worker.state() == v1::LOST && now_unix_us - ToUnixUs(worker.last_seen_time()) > kDayUs;
}

namespace {

std::string WorkerRemark(const v1::Worker& w, const v1::Device& d) {
  if (!d.fault().empty()) return absl::StrCat("withdrawn: ", Printable(d.fault()));
  if (!w.no_room().empty()) return absl::StrCat("no new work, its disk is full: ", Printable(w.no_room()));
  return d.description().empty() ? "-" : d.description();
}

std::vector<std::vector<std::string>> WorkerRows(const v1::ListWorkersResponse& list, const Style& style,
                                                 bool pinned, int64_t now_us) {
  std::vector<std::vector<std::string>> rows = {{"NAME", "STATE", "DEVICE", "BODY", "SPEED", "CAPACITY",
                                                 "PLANNED", "USED", "JOBS", "SEEN", "WHAT"}};
  if (pinned) rows[0].insert(rows[0].begin() + kPinnedColumn, "PINNED");
  for (const auto& w : list.workers()) {
    const std::string state = WorkerStateText(style, w.state());
    const std::string seen = AgeText(w.last_seen_time(), now_us);
    for (const auto& d : w.devices()) {
      rows.push_back({ShortName(w.name()), state, d.id(), d.body(), SpeedText(d.linear_mflop_per_s()),
                      FormatBytes(d.capacity_bytes()), FormatBytes(d.reserved_bytes()),
                      FormatBytes(d.used_bytes()), absl::StrCat(d.jobs_size()), seen, WorkerRemark(w, d)});
      if (!pinned) continue;
      rows.back().insert(rows.back().begin() + kPinnedColumn,
                         d.pinned_capacity_bytes() > 0
                             ? absl::StrCat(FormatBytes(d.pinned_reserved_bytes()), " of ",
                                            FormatBytes(d.pinned_capacity_bytes()))
                             : "-");
    }
    if (w.devices_size() > 0) continue;
    rows.push_back({ShortName(w.name()), state});
    rows.back().resize(rows[0].size(), "-");
    rows.back()[rows[0].size() - 2] = seen;
  }
  return rows;
}

}  // namespace

int WorkerList(const Globals& g, bool all) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(v1::ListWorkersResponse list, client.ListWorkers());
    const int64_t now_us = RealClock::Get().NowUnixUs();
    int hidden = 0;
    // Scripts get everything in the forms that are made for them.
    if (!all && g.terminal.form != Form::kJson && g.terminal.form != Form::kYaml) {
      v1::ListWorkersResponse shown;
      for (const auto& w : list.workers()) {
        if (IsLongLost(w, now_us)) {
          ++hidden;
        } else {
          *shown.add_workers() = w;
        }
      }
      list = std::move(shown);
    }
    bool pinned = false;
    for (const auto& w : list.workers()) {
      pinned |= std::any_of(w.devices().begin(), w.devices().end(),
                            [](const auto& d) { return d.pinned_capacity_bytes() > 0; });
    }
    std::vector<int> right = {4, 5, 6, 7, 8};
    if (pinned) right.push_back(9);
    PrintList(g, list, list.workers(), WorkerRows(list, g.terminal.style, pinned, now_us), right);
    if (hidden > 0) {
      PrintNote(g.terminal, absl::StrCat(hidden, hidden == 1 ? " worker" : " workers",
                                         " lost for more than a day not shown (--all; nibble worker rm NAME "
                                         "forgets one for good)"));
    } else if (list.workers_size() == 0) {
      PrintNote(g.terminal, "no workers; start one with nibble-worker --server HOST:PORT (or nibble up)");
    }
    return kExitOk;
  });
}

int WorkerDrain(const Globals& g, const std::string& name, bool drain) {
  return WithClient(g, [&](Client& client) -> absl::StatusOr<int> {
    const std::string full = FullName("workers", name);
    ASSIGN_OR_RETURN(const v1::Worker worker,
                     drain ? client.DrainWorker(full) : client.UndrainWorker(full));
    if (PrintMessage(g.terminal, worker)) return kExitOk;
    PrintOut(
        absl::StrCat(ShortName(worker.name()), " ", v1::WorkerState_Name(worker.state()), "\n"));
    return kExitOk;
  });
}

int WorkerRemove(const Globals& g, const std::vector<std::string>& names) {
  return RemoveAllOf(g, "workers", names, &Client::DeleteWorker);
}

}  // namespace nibble::client
