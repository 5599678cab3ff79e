// For tests of the life of a job: a worker with one that trains.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "base/error.h"
#include "server/core/testing/driver.h"

namespace nibble::core::testing {

inline Reason ReasonOf(const absl::StatusOr<std::string>& answer) { return StatusReason(answer.status()); }

// "j" on "w1", at its first step.
class RunningTest : public ::testing::Test {
 protected:
  void SetUp() override {
    d_.AddWorker("w1");
    d_.Must(Driver::JobOf("j"));
    d_.Place();
    Progress(1);
  }
  void Progress(int64_t step) {
    ReportProgress report;
    report.fence = d_.FenceOf("j");
    report.head.step = step;
    d_.Must(report);
  }
  ReportFailed Failed(const std::string& reason, bool infrastructure) {
    return {d_.FenceOf("j"), reason, "because", infrastructure, false};
  }
  JobState state() const { return d_.job("j").state; }
  const Attempt& attempt(int64_t epoch) const { return d_.job("j").attempts.at(epoch); }

  Driver d_;
};

}  // namespace nibble::core::testing
