// An event that was kept, as the stores, watchers, metrics and the audit trail see it. Made by Apply.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "server/core/types.h"

namespace nibble::core {

struct EventRecord {
  int64_t number = 0;    // dense over all, from 1
  std::string job_id;    // "" for fleet events
  int64_t sequence = 0;  // dense per job, from 1; 0 for fleet events
  int64_t unix_us = 0;
  std::string type;                         // "job.queued"
  std::string message;                      // for people
  JobState state = JobState::kUnspecified;  // the job's, after the event
  std::map<std::string, std::string> fields;
  bool operator==(const EventRecord&) const = default;
};

}  // namespace nibble::core
