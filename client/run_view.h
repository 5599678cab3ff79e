// The picture of a running job, built from the updates of a watch. Pure: time is handed in.
//
// On a terminal a few lines are redrawn in place (Frame) under the lines that stay (TakeLines); in
// a pipe there are only lines that stay, with a step now and then. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

class RunView {
 public:
  RunView(Style style, bool live) : style_(style), live_(live) {}

  void Apply(const v1::WatchJobResponse& update);
  // What GetJob says; keeps planned steps and bytes fresh while the stream has only metrics.
  void Refresh(const v1::Job& job);
  void AddLine(std::string line) { lines_.push_back(std::move(line)); }

  std::vector<std::string> TakeLines();
  std::vector<std::string> Frame(int columns, int64_t now_unix_us) const;
  // After the end: result, loss, memory, what to do next.
  std::vector<std::string> Summary() const;

  const v1::Job& job() const { return job_; }
  int64_t last_sequence() const { return last_sequence_; }
  // Of the last steps; 0 when unknown.
  double TokensPerSecond() const;
  // Seconds; -1 when unknown.
  int64_t RemainingSeconds() const;

 private:
  void OnEvent(const v1::JobEvent& event);
  void OnMetric(const v1::MetricPoint& point);
  void OnStep(const v1::MetricPoint& point);
  std::string StepLine(const v1::MetricPoint& point) const;
  int64_t step() const;

  const Style style_;
  const bool live_;
  v1::Job job_;
  bool has_job_ = false;
  bool told_of_data_ = false;
  int64_t last_sequence_ = 0;
  int64_t last_step_ = 0;
  std::vector<double> losses_;  // by step
  double first_loss_ = 0;
  bool has_loss_ = false;
  double eval_loss_ = 0;
  bool has_eval_ = false;
  double learning_rate_ = 0;
  std::deque<v1::MetricPoint> recent_;  // for speed and ETA
  int checkpoints_ = 0;
  std::vector<std::string> lines_;
};

}  // namespace nibble::client
