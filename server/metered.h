// Stores that time their operations for a Meter and otherwise are the ones they wrap.
#pragma once

#include <memory>

#include "server/blob_store.h"
#include "server/meter.h"
#include "server/store_health.h"
#include "server/store/store.h"

namespace nibble::server {

// And tell `health` how writing goes.
std::unique_ptr<store::Store> NewMeteredStore(std::unique_ptr<store::Store> store, Meter* meter,
                                              StoreHealth* health);
std::unique_ptr<store::MetricStore> NewMeteredMetricStore(std::unique_ptr<store::MetricStore> store,
                                                          Meter* meter, StoreHealth* health);
std::unique_ptr<BlobStore> NewMeteredBlobStore(std::unique_ptr<BlobStore> store, Meter* meter);

}  // namespace nibble::server
