// The past of a server that keeps nothing: History over the memory stores. For tests and --in-memory.
//
// Events are read on the loop's thread, because the store is its own. Not to be called from there.
#pragma once

#include <memory>

#include "server/control_loop.h"
#include "server/store/history.h"

namespace nibble::server {

std::unique_ptr<store::History> NewMemoryHistory(ControlLoop* loop, store::Store* store,
                                                 store::MetricStore* metrics);

}  // namespace nibble::server
