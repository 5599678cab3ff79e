#include "worker/devices.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace nibble::worker {
namespace {

TEST(DevicesTest, Bytes) {
  EXPECT_EQ(*ParseBytes("8GiB", "m"), int64_t{8} << 30);
  EXPECT_EQ(*ParseBytes("512 MiB", "m"), int64_t{512} << 20);
  EXPECT_EQ(*ParseBytes("1.5g", "m"), int64_t{3} << 29);
  EXPECT_EQ(*ParseBytes("123456", "m"), 123456);
  for (const char* bad : {"", "x", "8 apples", "-1GiB", "0", "1e400", "99999999TiB"}) {
    EXPECT_FALSE(ParseBytes(bad, "--memory").ok()) << bad;
  }
}

TEST(DevicesTest, TheEngineMeasures) {
  TempDir dir;
  DeviceOptions options;
  options.engine_binary = NIBBLE_FAKE_ENGINE;
  options.log_file = dir.Join("log");
  options.memory_bytes = int64_t{1} << 30;
  const auto device = MeasureDevice(options);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->id, "cpu0");
  EXPECT_EQ(device->profile.body, "fake");
  EXPECT_EQ(device->profile.capacity_bytes, int64_t{1} << 30);
  options.memory_bytes = 1000;
  EXPECT_FALSE(MeasureDevice(options).ok());
  options.engine_binary = "/nowhere/nibble-engine";
  EXPECT_FALSE(MeasureDevice(options).ok());
  EXPECT_GT(AvailableMemoryBytes(), 0);
  EXPECT_GE(AvailableThreads(), 1);
}

}  // namespace
}  // namespace nibble::worker
