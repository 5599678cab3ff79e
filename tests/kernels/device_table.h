// A backend's table for arrays of the host: every op copies what it needs to the device, runs there, and
// brings its results back. So the cases of harness.h, which know ordinary memory only, check a device.
//
// Each array has its own allocation, as long as it is and as badly aligned as the host's, between guard
// bytes that are looked at afterwards. Slow, and for checks alone. One backend at a time.
#pragma once

#include <string>

#include "kernels/backend.h"

namespace nibble::kernels::check {

// The backend must outlive the table's use.
KernelTable TableForHostMemory(Backend& backend);

// What went wrong on the device since the last call: guard bytes overwritten, the backend's error; else
// empty.
std::string TakeDeviceFailure();

}  // namespace nibble::kernels::check
