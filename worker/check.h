// A CHECK attempt: nibble-engine validate run to its end, its report or its refusal brought back.
#pragma once

#include <functional>
#include <string>

#include "worker/core/messages.h"

namespace nibble::worker {

struct CheckSetup {
  std::string engine_binary;
  std::string dir;  // the attempt's own
};

CheckEnded RunCheck(const CheckSetup& setup, const Assignment& assignment, const LocalFiles& files,
                    const std::function<bool()>& cancelled);

}  // namespace nibble::worker
