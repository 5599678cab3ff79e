// What the process that started this one is told (systemd's Type=notify; elsewhere nobody listens).
#pragma once

#include <string_view>

namespace nibble {

// "READY=1" when it serves, "STOPPING=1" when it begins to end. Nothing happens without NOTIFY_SOCKET, nor
// when nobody can be told.
void TellSupervisor(std::string_view state);

}  // namespace nibble
