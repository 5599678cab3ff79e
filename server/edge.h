// What an RPC may use: the doors to the loop, the past, the bytes, and who is asking.
//
// A bundle of pointers, made once by the server and outliving every service. All that it points to is
// thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/clock.h"
#include "server/auth.h"
#include "server/blob_store.h"
#include "server/control_loop.h"
#include "server/io_pool.h"
#include "server/store/history.h"
#include "server/store/store.h"
#include "server/ticker.h"
#include "server/watch_hub.h"

namespace nibble::server {

class Meter;
class PlanDesk;
class StoreHealth;

struct Edge {
  ControlLoop* loop = nullptr;
  WatchHub* hub = nullptr;
  store::History* history = nullptr;
  store::MetricStore* metrics = nullptr;
  BlobStore* blobs = nullptr;
  IoPool* io = nullptr;                 // short work: a chunk, a page of events
  IoPool* work = nullptr;               // long work: plans; never in the way of a chunk
  IoPool* files = nullptr;              // work of minutes: whole files; never in the way of a plan
  Ticker* ticker = nullptr;
  const Authorizer* authorizer = nullptr;
  const Clock* clock = nullptr;
  PlanDesk* plans = nullptr;
  Meter* meter = nullptr;               // may be null
  const StoreHealth* health = nullptr;  // may be null
  std::string model_root;               // real path; "" = paths are refused
  core::CoreOptions core;               // lease times for workers
  int64_t heartbeat_us = 15'000'000;    // of quiet watch streams
  int64_t stuck_write_us = 30'000'000;  // a watcher that takes nothing for so long is cut
  std::atomic<bool> draining{false};
};

}  // namespace nibble::server
