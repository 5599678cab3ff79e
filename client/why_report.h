// What `nibble why` prints. Pure: the answer in, text out.
#pragma once

#include <cstdint>
#include <string>

#include "client/draw.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// The reasons, one a line; the devices in a table; what would let it start.
std::string WhyText(const v1::ExplainJobResponse& why, int64_t now_unix_us, const Style& style);

}  // namespace nibble::client
