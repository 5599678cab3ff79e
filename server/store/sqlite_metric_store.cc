// metrics.db: one thread writes, callers wait for their batch.
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mailbox.h"
#include "base/status.h"
#include "server/store/event_rows.h"
#include "server/store/metric_read.h"
#include "server/store/schema.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"

namespace nibble::store {
namespace {

constexpr size_t kMaxQueued = 4'096;
constexpr size_t kMaxBatch = 256;

class SqliteMetricStore : public MetricStore {
 public:
  SqliteMetricStore(Database writer, Database reader)
      : writer_(std::move(writer)), reader_(std::move(reader)), queue_(kMaxQueued) {}
  ~SqliteMetricStore() override {
    queue_.Close();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start();
  absl::Status Append(std::string_view job_id, const std::vector<StepMetric>& metrics) override;
  absl::StatusOr<std::vector<StepMetric>> Read(std::string_view job_id, int64_t after_step,
                                               int64_t until_step, int64_t max_points) override {
    std::lock_guard lock(reader_mutex_);
    return ReadMetrics(reader_, job_id, after_step, until_step, max_points);
  }
  absl::Status DeleteJob(std::string_view job_id) override;
  absl::StatusOr<std::vector<std::string>> JobIds(std::string_view after, int64_t limit) override;

 private:
  struct Operation {
    std::function<absl::Status()> write;  // on the writing thread, inside a transaction
    std::shared_ptr<std::promise<absl::Status>> done;
  };

  absl::Status Write(std::function<absl::Status()> write);
  void RunWriter();
  absl::Status WriteBatch(const std::vector<Operation>& batch);
  absl::Status WriteMetric(const std::string& job_id, const StepMetric& metric);

  Database writer_;  // of the thread
  std::mutex reader_mutex_;
  Database reader_;
  Statement put_metric_, delete_job_;
  Mailbox<Operation> queue_;
  std::thread thread_;
};

absl::Status SqliteMetricStore::Start() {
  // A repeat keeps what is there but takes an evaluation; a row that came from an evaluation alone
  // takes the step's own figures. As Merge has it.
  ASSIGN_OR_RETURN(
      put_metric_,
      writer_.Prepare(
          "INSERT INTO step_metrics VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15) "
          "ON CONFLICT(job_id,step,epoch) DO UPDATE SET "
          "loss=CASE WHEN tokens=0 AND ?7>0 THEN ?4 ELSE loss END, "
          "gradient_norm=CASE WHEN tokens=0 AND ?7>0 THEN ?5 ELSE gradient_norm END, "
          "learning_rate=CASE WHEN tokens=0 AND ?7>0 THEN ?6 ELSE learning_rate END, "
          "target_tokens=CASE WHEN tokens=0 AND ?7>0 THEN ?8 ELSE target_tokens END, "
          "step_time_us=CASE WHEN tokens=0 AND ?7>0 THEN ?9 ELSE step_time_us END, "
          "time_unix_us=CASE WHEN tokens=0 AND ?7>0 THEN ?10 ELSE time_unix_us END, "
          "used_bytes=CASE WHEN tokens=0 AND ?7>0 THEN ?13 ELSE used_bytes END, "
          "epoch_fraction=CASE WHEN tokens=0 AND ?7>0 THEN ?14 ELSE epoch_fraction END, "
          "eval_loss=CASE WHEN has_eval=0 OR (tokens=0 AND ?7>0 AND ?12=1) THEN ?11 ELSE eval_loss "
          "END, "
          "has_eval=max(has_eval, ?12), "
          "phase_us=CASE WHEN tokens=0 AND ?7>0 THEN ?15 ELSE phase_us END, "
          "tokens=CASE WHEN tokens=0 AND ?7>0 THEN ?7 ELSE tokens END"));
  ASSIGN_OR_RETURN(delete_job_, writer_.Prepare("DELETE FROM step_metrics WHERE job_id=?1"));
  thread_ = std::thread([this] { RunWriter(); });
  return absl::OkStatus();
}

void SqliteMetricStore::RunWriter() {
  constexpr int64_t kWaitUs = 1'000'000;
  while (true) {
    const std::vector<Operation> batch = queue_.Take(kMaxBatch, kWaitUs);
    if (batch.empty()) {
      if (queue_.closed()) return;
      continue;
    }
    const absl::Status status = WriteBatch(batch);
    for (const Operation& operation : batch) operation.done->set_value(status);
  }
}

absl::Status SqliteMetricStore::WriteBatch(const std::vector<Operation>& batch) {
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(&writer_));
  for (const Operation& operation : batch) RETURN_IF_ERROR(operation.write());
  return transaction.Commit();
}

absl::Status SqliteMetricStore::Write(std::function<absl::Status()> write) {
  auto done = std::make_shared<std::promise<absl::Status>>();
  std::future<absl::Status> future = done->get_future();
  if (!queue_.Post({std::move(write), std::move(done)})) {
    return Error(Reason::kStoreUnavailable, "the metrics writer is busy or stopped; send again");
  }
  return future.get();
}

absl::Status SqliteMetricStore::WriteMetric(const std::string& job_id, const StepMetric& m) {
  put_metric_.Bind(1, job_id)
      .Bind(2, m.step)
      .Bind(3, m.epoch)
      .Bind(4, m.loss)
      .Bind(5, m.gradient_norm);
  put_metric_.Bind(6, m.learning_rate)
      .Bind(7, m.tokens)
      .Bind(8, m.target_tokens)
      .Bind(9, m.step_time_us);
  put_metric_.Bind(10, m.time_unix_us);
  if (m.eval_loss) {
    put_metric_.Bind(11, *m.eval_loss);
  } else {
    put_metric_.BindNull(11);
  }
  put_metric_.Bind(12, int64_t{m.eval_loss.has_value()})
      .Bind(13, m.used_bytes)
      .Bind(14, m.epoch_fraction)
      .Bind(15, PhaseTimesToText(m.phase_us));
  return put_metric_.Run();
}

absl::Status SqliteMetricStore::Append(std::string_view job_id,
                                       const std::vector<StepMetric>& metrics) {
  if (metrics.empty()) return absl::OkStatus();
  return Write([this, id = std::string(job_id), &metrics]() -> absl::Status {
    for (const StepMetric& metric : metrics) RETURN_IF_ERROR(WriteMetric(id, metric));
    return absl::OkStatus();
  });
}

absl::Status SqliteMetricStore::DeleteJob(std::string_view job_id) {
  return Write([this, id = std::string(job_id)] { return delete_job_.Bind(1, id).Run(); });
}

// One look-up a job: DISTINCT would read every step of all of them.
absl::StatusOr<std::vector<std::string>> SqliteMetricStore::JobIds(std::string_view after, int64_t limit) {
  std::lock_guard lock(reader_mutex_);
  ASSIGN_OR_RETURN(Statement next,
                   reader_.Prepare("SELECT job_id FROM step_metrics WHERE job_id>?1 "
                                   "ORDER BY job_id LIMIT 1"));
  std::vector<std::string> ids;
  while (static_cast<int64_t>(ids.size()) < limit) {
    next.Bind(1, ids.empty() ? after : std::string_view(ids.back()));
    ASSIGN_OR_RETURN(const bool row, next.Step());
    if (!row) break;
    ids.push_back(next.Text(0));
    next.Reset();
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricStore>> OpenSqliteMetricStore(const std::string& data_dir) {
  const std::string path = JoinPath(data_dir, "metrics.db");
  ASSIGN_OR_RETURN(Database writer, Database::Open(path, Database::Mode::kReadWrite));
  RETURN_IF_ERROR(writer.Execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"));
  RETURN_IF_ERROR(Migrate(writer, path, MetricsSchema()));
  ASSIGN_OR_RETURN(Database reader, Database::Open(path, Database::Mode::kReadOnly));
  auto store = std::make_unique<SqliteMetricStore>(std::move(writer), std::move(reader));
  RETURN_IF_ERROR(store->Start());
  return store;
}

}  // namespace nibble::store
