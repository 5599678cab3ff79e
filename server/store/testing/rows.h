// For tests of stores: writing a driver's state, and comparing what is read back.
#pragma once

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "server/core/testing/driver.h"
#include "server/store/memory_store.h"

namespace nibble::store::testing {

inline absl::Status CommitTo(Store& store, core::testing::Driver& driver) {
  const absl::Status status = store.Commit(driver.state(), driver.TakeRecords());
  if (status.ok()) driver.mutable_state().touched = {};
  return status;
}

// Of what survives a store, compared piece by piece so that a failure says where: the rows, and what is
// counted with them.
inline void ExpectSameRows(const core::State& a_in, const core::State& b_in) {
  const core::State a = WithoutVolatile(a_in), b = WithoutVolatile(b_in);
  EXPECT_EQ(a.last_job_number, b.last_job_number);
  EXPECT_EQ(a.last_event_number, b.last_event_number);
  EXPECT_TRUE(a.jobs == b.jobs);
  EXPECT_TRUE(a.workers == b.workers);
  EXPECT_TRUE(a.datasets == b.datasets);
  EXPECT_TRUE(a.models == b.models);
  EXPECT_TRUE(a.blobs == b.blobs);
  EXPECT_TRUE(a.requests == b.requests);
  EXPECT_EQ(a.queued_jobs, b.queued_jobs);
}
// And all the rest.
inline void ExpectSame(const core::State& a, const core::State& b) {
  ExpectSameRows(a, b);
  EXPECT_EQ(a.timeline, b.timeline);
  EXPECT_EQ(a.generation, b.generation);
  EXPECT_TRUE(a.adapters == b.adapters);
  EXPECT_EQ(a.live_jobs, b.live_jobs);
}

}  // namespace nibble::store::testing
