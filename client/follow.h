// Following a job on the terminal until it ends. Ctrl-C stops looking, never the job.
#pragma once

#include <string>

#include "client/client.h"
#include "client/output.h"

namespace nibble::client {

// Returns the command's exit code: the job's outcome, or 130 after Ctrl-C.
int FollowJob(Client& client, const Terminal& terminal, const std::string& name);

}  // namespace nibble::client
