// The bytes of a quantized base's file, written: from the weights, or from a file in flat order. Of
// base_cache.cc alone, which knows where the file lies and commits it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/file.h"
#include "engine/model/base_cache.h"
#include "engine/model/locked_file.h"

namespace nibble::engine {

absl::Status MakeBaseCache(const BaseCacheRequest& request, const BaseTensors& tensors,
                           const spec::BaseLayout& layout, LockedFile& file);

// A file in flat order with what can lie in tiles there: the same values at the same places.
absl::Status TranscodeBaseCache(const MappedFile& flat, const std::string& digest,
                                const spec::BaseLayout& layout, LockedFile& file);

}  // namespace nibble::engine
