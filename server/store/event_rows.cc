#include "server/store/event_rows.h"

#include <limits>
#include <utility>

#include "base/status.h"
#include "server/store/codec.h"
#include "server/store/metric_read.h"

namespace nibble::store {
namespace {

absl::StatusOr<std::vector<core::EventRecord>> ReadEvents(Statement& rows) {
  std::vector<core::EventRecord> records;
  ASSIGN_OR_RETURN(bool row, rows.Step());
  while (row) {
    core::EventRecord r;
    r.number = rows.Int(0);
    r.job_id = rows.Text(1);
    r.sequence = rows.Int(2);
    r.unix_us = rows.Int(3);
    r.type = rows.Text(4);
    r.message = rows.Text(5);
    r.state = core::JobStateFromName(rows.Text(6));
    ASSIGN_OR_RETURN(r.fields, DecodeFields(rows.Text(7)));
    records.push_back(std::move(r));
    ASSIGN_OR_RETURN(row, rows.Step());
  }
  return records;
}

}  // namespace

absl::StatusOr<std::vector<core::EventRecord>> ReadJobEvents(Database& db, std::string_view job_id,
                                                             int64_t after_sequence,
                                                             int64_t limit) {
  ASSIGN_OR_RETURN(
      Statement rows,
      db.Prepare("SELECT number, job_id, sequence, unix_us, type, message, state, fields "
                 "FROM events WHERE job_id=?1 AND job_id<>'' AND sequence>?2 "
                 "ORDER BY sequence LIMIT ?3"));
  rows.Bind(1, job_id).Bind(2, after_sequence).Bind(3, limit);
  return ReadEvents(rows);
}

absl::StatusOr<std::vector<core::EventRecord>> ReadAllEvents(Database& db, int64_t after_number,
                                                             int64_t limit) {
  ASSIGN_OR_RETURN(
      Statement rows,
      db.Prepare("SELECT number, job_id, sequence, unix_us, type, message, state, fields "
                 "FROM events WHERE number>?1 ORDER BY number LIMIT ?2"));
  rows.Bind(1, after_number).Bind(2, limit);
  return ReadEvents(rows);
}

absl::StatusOr<std::vector<StepMetric>> ReadMetrics(Database& db, std::string_view job_id,
                                                    int64_t after_step, int64_t until_step,
                                                    int64_t max_points) {
  ASSIGN_OR_RETURN(
      Statement rows,
      db.Prepare(
          "SELECT step, epoch, loss, gradient_norm, learning_rate, tokens, target_tokens, "
          "step_time_us, time_unix_us, eval_loss, has_eval, used_bytes, epoch_fraction, phase_us, "
          // Once, and of the same snapshot.
          "(SELECT count(*) FROM (SELECT DISTINCT step FROM step_metrics "
          "WHERE job_id=?1 AND step>?2 AND step<=?3)) "
          "FROM step_metrics WHERE job_id=?1 AND step>?2 AND step<=?3 ORDER BY step, epoch"));
  rows.Bind(1, job_id).Bind(2, after_step);
  rows.Bind(3, until_step > 0 ? until_step : std::numeric_limits<int64_t>::max());
  ASSIGN_OR_RETURN(bool row, rows.Step());
  SeriesReader series(row ? rows.Int(14) : 0, max_points);
  while (row) {
    StepMetric m;
    m.step = rows.Int(0);
    m.epoch = rows.Int(1);
    m.loss = rows.Real(2);
    m.gradient_norm = rows.Real(3);
    m.learning_rate = rows.Real(4);
    m.tokens = rows.Int(5);
    m.target_tokens = rows.Int(6);
    m.step_time_us = rows.Int(7);
    m.time_unix_us = rows.Int(8);
    if (rows.Int(10) != 0) m.eval_loss = rows.Real(9);
    m.used_bytes = rows.Int(11);
    m.epoch_fraction = rows.Real(12);
    m.phase_us = PhaseTimesFromText(rows.Text(13));
    series.Add(std::move(m));
    ASSIGN_OR_RETURN(row, rows.Step());
  }
  return std::move(series).Take();
}

}  // namespace nibble::store
