#include "worker/nvml.h"

#include "gtest/gtest.h"

namespace nibble::worker {
namespace {

TEST(Nvml, ReadsWhatTheLibrarySaysAndLeavesOutWhatItDoesNot) {
  Nvml nvml(NIBBLE_FAKE_NVML);
  ASSERT_TRUE(nvml.ok());
  const GpuReading reading = nvml.Read("GPU-1");
  EXPECT_EQ(reading.memory_used_bytes, int64_t{4} << 30);
  EXPECT_EQ(reading.memory_total_bytes, int64_t{16} << 30);
  EXPECT_EQ(reading.utilization, 0.75);
  EXPECT_EQ(reading.temperature_celsius, 61);
  EXPECT_FALSE(reading.power_watts.has_value());
  EXPECT_EQ(nvml.Read("GPU-2"), GpuReading());
}

TEST(Nvml, AMissingLibraryIsNoError) {
  Nvml nvml("libnibble-no-such-library.so.1");
  EXPECT_FALSE(nvml.ok());
  EXPECT_EQ(nvml.Read("GPU-1"), GpuReading());
}

// Whatever this machine has, asking it is safe.
TEST(Nvml, ThisMachinesOwnLibraryMayBeAsked) {
  Nvml nvml;
  EXPECT_EQ(nvml.Read("GPU-00000000-0000-0000-0000-000000000000"), GpuReading());
}

}  // namespace
}  // namespace nibble::worker
