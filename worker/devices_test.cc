#include "worker/devices.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

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
  const auto refusal = [&](const char* script) {
    options.engine_binary = dir.Join("refuses");
    EXPECT_TRUE(WriteFileAtomic(options.engine_binary, script).ok());
    EXPECT_EQ(chmod(options.engine_binary.c_str(), 0755), 0);
    return std::string(MeasureDevice(options).status().message());
  };
  EXPECT_NE(refusal("#!/bin/sh\necho first >&2; echo there is no such device >&2; exit 5\n")
                .find("ended with code 5: there is no such device; its log is "),
            std::string::npos);
  EXPECT_NE(refusal("#!/bin/sh\nexit 5\n").find("ended with code 5; see "), std::string::npos)
      << "what another said before is not its own";
  options.engine_binary = "/nowhere/nibble-engine";
  EXPECT_FALSE(MeasureDevice(options).ok());
  options.engine_binary = dir.Join("hangs");
  ASSERT_TRUE(WriteFileAtomic(options.engine_binary, "#!/bin/sh\nexec sleep 100\n").ok());
  ASSERT_EQ(chmod(options.engine_binary.c_str(), 0755), 0);
  options.limit_s = 1;
  const absl::Status hangs = MeasureDevice(options).status();
  EXPECT_NE(hangs.message().find("does not answer"), std::string::npos) << hangs;
  EXPECT_GT(AvailableMemoryBytes(), 0);
  EXPECT_GE(AvailableThreads(), 1);
}

// A machine of 64 GiB, of which groups leave less.
class CgroupTest : public testing::Test {
 protected:
  void SetUp() override { Write("/proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 62914560 kB\n"); }
  void Write(const std::string& path, const std::string& text) {
    ASSERT_TRUE(MakeDirs(DirName(dir_.path() + path)).ok());
    ASSERT_TRUE(WriteFileAtomic(dir_.path() + path, text).ok());
  }
  void WriteGroup(const std::string& path, const std::string& limit, int64_t used, int64_t idle) {
    Write(path + "/memory.max", limit + "\n");
    Write(path + "/memory.current", std::to_string(used));
    Write(path + "/memory.stat", "anon 1\ninactive_file " + std::to_string(idle) + "\n");
  }
  int64_t Gib() const { return AvailableMemoryBytes(dir_.path()) >> 30; }
  static constexpr int64_t kGiB = int64_t{1} << 30;
  TempDir dir_;
};

TEST_F(CgroupTest, AUnitsBoundCounts) {
  EXPECT_EQ(Gib(), 60);
  Write("/proc/self/cgroup", "0::/system.slice/nibble-worker.service\n");
  EXPECT_EQ(Gib(), 60);
  const std::string slice = "/sys/fs/cgroup/system.slice";
  WriteGroup(slice + "/nibble-worker.service", "max", 3 * kGiB, 0);
  EXPECT_EQ(Gib(), 60);
  WriteGroup(slice + "/nibble-worker.service", std::to_string(16 * kGiB), 3 * kGiB, 0);
  EXPECT_EQ(Gib(), 13);
  WriteGroup(slice, std::to_string(20 * kGiB), 12 * kGiB, 0);
  EXPECT_EQ(Gib(), 8) << "what is around it is fuller";
}

TEST_F(CgroupTest, QuotasOfProcessorsCountAsThreads) {
  const int all = AvailableThreads(dir_.path());
  EXPECT_EQ(all, AvailableThreads(dir_.Join("nothing here")));
  Write("/proc/self/cgroup", "2:cpu,cpuacct:/docker/1\n0::/a/b\n");
  Write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
  EXPECT_EQ(AvailableThreads(dir_.path()), all);
  Write("/sys/fs/cgroup/a/cpu.max", "50000 100000\n");
  EXPECT_EQ(AvailableThreads(dir_.path()), 1);
  Write("/sys/fs/cgroup/a/cpu.max", "9900000 100000\n");
  EXPECT_EQ(AvailableThreads(dir_.path()), std::min(all, 99));
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000");
  EXPECT_EQ(AvailableThreads(dir_.path()), 1);
}

TEST_F(CgroupTest, WhatIsOnlyCachedIsFree) {
  Write("/proc/self/cgroup", "0::/\n");
  WriteGroup("/sys/fs/cgroup", std::to_string(8 * kGiB), 8 * kGiB, 6 * kGiB);
  EXPECT_EQ(Gib(), 6) << "a container that has just read a model";
}

TEST_F(CgroupTest, TheFirstVersionToo) {
  Write("/proc/self/cgroup", "5:cpu:/docker/1\n4:memory:/docker/1\n0::/\n");
  const std::string group = "/sys/fs/cgroup/memory";
  Write(group + "/memory.limit_in_bytes", std::to_string(8 * kGiB));
  Write(group + "/memory.usage_in_bytes", std::to_string(3 * kGiB));
  Write(group + "/memory.stat", "cache 1\ninactive_file 0\ntotal_inactive_file " + std::to_string(kGiB));
  EXPECT_EQ(Gib(), 6);
  Write(group + "/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(Gib(), 60);
}

TEST(DevicesTest, NamesThemInTheFleet) {
  EXPECT_EQ(DeviceId("cpu"), "cpu0");
  EXPECT_EQ(DeviceId("cpu:avx2"), "cpu0");
  EXPECT_EQ(DeviceId("cuda:0"), "cuda0");
  EXPECT_EQ(DeviceId("cuda:12,fp16"), "cuda12");
}

TEST(DevicesTest, ResolvesWhatTheFlagSays) {
  const std::vector<GpuInfo> two = {{.device = "cuda:0"}, {.device = "cuda:1"}};
  using Names = std::vector<std::string>;
  EXPECT_EQ(*ResolveDevices({"auto"}, two, ""), (Names{"cuda:0", "cuda:1"}));
  EXPECT_EQ(*ResolveDevices({"auto"}, {}, "no driver"), (Names{"cpu"}));
  EXPECT_EQ(*ResolveDevices({"cuda", "cpu"}, two, ""), (Names{"cuda:0", "cuda:1", "cpu"}));
  EXPECT_EQ(*ResolveDevices({"cuda:1,fp16"}, two, ""), (Names{"cuda:1,fp16"}));
  const auto none = ResolveDevices({"cuda"}, {}, "no driver is installed");
  EXPECT_NE(none.status().message().find("no driver is installed"), std::string::npos);
  EXPECT_FALSE(ResolveDevices({"cuda", "cuda:0,fp16"}, two, "").ok());
}

TEST(DevicesTest, TheHostsMemoryIsSharedOutOnce) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  EXPECT_EQ(ShareHost({.available_bytes = 64 * kGiB, .has_cpu = true})->cpu_bytes, 63 * kGiB);
  const HostShare alone = *ShareHost({.available_bytes = 64 * kGiB, .gpus = 1});
  EXPECT_EQ(alone.cpu_bytes, 0);
  EXPECT_EQ(alone.pinned_bytes, 32 * kGiB);
  EXPECT_EQ(alone.host_bytes, 31 * kGiB);
  const HostShare asked =
      *ShareHost({.available_bytes = 64 * kGiB, .gpus = 4, .asked_pinned_bytes = 8 * kGiB});
  EXPECT_EQ(asked.pinned_bytes, 2 * kGiB);
  EXPECT_EQ(4 * (asked.pinned_bytes + asked.host_bytes), 63 * kGiB);
  // Little is something: 0 would mean "not limited".
  const HostShare little = *ShareHost({.available_bytes = 1, .gpus = 8});
  EXPECT_GT(little.pinned_bytes, 0);
  EXPECT_GT(little.host_bytes, 0);
}

TEST(DevicesTest, NoMoreIsOfferedThanTheMachineHas) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  HostQuestion question{
      .available_bytes = 8 * kGiB, .has_cpu = true, .asked_cpu_bytes = 20 * kGiB, .machine_bytes = 20 * kGiB};
  EXPECT_EQ(ShareHost(question)->cpu_bytes, 20 * kGiB) << "the operator may know what will be free";
  question.asked_cpu_bytes += 1;
  const absl::Status more = ShareHost(question).status();
  EXPECT_EQ(more.message().find("--memory is 21474836481 bytes, and this machine has 21474836480"), 0u)
      << more;
  TempDir dir;
  ASSERT_TRUE(MakeDirs(dir.Join("proc")).ok());
  ASSERT_TRUE(
      WriteFileAtomic(dir.Join("proc/meminfo"), "MemTotal: 16 kB\nMemAvailable: 9 kB\nSwapTotal: 4 kB\n")
          .ok());
  EXPECT_EQ(MachineMemoryBytes(dir.path()), 20 * 1024);
  EXPECT_EQ(AvailableMemoryBytes(dir.path()), 9 * 1024);
}

// What jobs on the processor may take is not offered to jobs on GPUs a second time.
TEST(DevicesTest, TheProcessorsMemoryIsNotTheGpusToo) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  for (const int64_t gpus : {1, 2, 8}) {
    for (const int64_t cpu_bytes : {int64_t{0}, 10 * kGiB}) {
      for (const int64_t pinned_bytes : {int64_t{0}, 16 * kGiB}) {
        const HostShare share = *ShareHost({.available_bytes = 64 * kGiB,
                                            .has_cpu = true,
                                            .gpus = gpus,
                                            .asked_cpu_bytes = cpu_bytes,
                                            .asked_pinned_bytes = pinned_bytes});
        EXPECT_EQ(share.cpu_bytes, cpu_bytes > 0 ? cpu_bytes : 32 * kGiB);
        if (pinned_bytes > 0) {
          EXPECT_EQ(gpus * share.pinned_bytes, pinned_bytes);
        }
        const int64_t given_bytes = share.cpu_bytes + gpus * (share.pinned_bytes + share.host_bytes);
        EXPECT_LE(given_bytes, 63 * kGiB);
        EXPECT_GT(given_bytes, 63 * kGiB - 2 * gpus);
      }
    }
  }
  const auto too_much =
      ShareHost({.available_bytes = 64 * kGiB, .has_cpu = true, .gpus = 1, .asked_cpu_bytes = 63 * kGiB});
  EXPECT_NE(too_much.status().message().find("--memory"), std::string::npos) << too_much.status();
}

TEST(DevicesTest, AProbeSaysWhetherTheDeviceOpens) {
  TempDir dir;
  EXPECT_TRUE(ProbeDevice(NIBBLE_FAKE_ENGINE, "cuda:0", dir.Join("log"), nullptr).ok());
  const absl::Status dead = ProbeDevice("/bin/false", "cuda:0", dir.Join("log"), nullptr);
  EXPECT_NE(dead.message().find("cuda:0 does not open"), std::string::npos) << dead;
  const absl::Status silent =
      ProbeDevice(NIBBLE_FAKE_ENGINE, "cuda:0", dir.Join("log"), [] { return true; });
  EXPECT_NE(silent.message().find("does not answer"), std::string::npos) << silent;
}

TEST(DevicesTest, AsksTheEngineForGpus) {
  TempDir dir;
  std::string why;
  const auto gpus = ListGpus(NIBBLE_FAKE_ENGINE, dir.Join("log"), &why);
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  ASSERT_EQ(gpus->size(), 1u);
  EXPECT_EQ((*gpus)[0].device, "cuda:0");
  EXPECT_EQ((*gpus)[0].memory_bytes, int64_t{8} << 30);
  DeviceOptions options;
  options.engine_binary = NIBBLE_FAKE_ENGINE;
  options.device = "cuda:0";
  options.log_file = dir.Join("log");
  const auto device = MeasureDevice(options, *gpus);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ(device->id, "cuda0");
  EXPECT_EQ(device->description, "Fake GPU, 8.0 GiB, compute capability 9.0, GPU-1, driver 1.2");
  EXPECT_EQ(device->uuid, "GPU-1");
  EXPECT_EQ(device->profile.pinned_capacity_bytes, 0);
  options.pinned_bytes = 7;
  options.host_bytes = 8;
  EXPECT_EQ(MeasureDevice(options, *gpus)->profile.pinned_capacity_bytes, 7);
  EXPECT_EQ(MeasureDevice(options, *gpus)->profile.host_capacity_bytes, 8);
  options.memory_bytes = device->profile.capacity_bytes + 1;  // there is no more than there is
  EXPECT_EQ(MeasureDevice(options, *gpus)->profile.capacity_bytes, device->profile.capacity_bytes);
  EXPECT_FALSE(ListGpus("/nowhere/nibble-engine", dir.Join("log"), &why).ok());
}

}  // namespace
}  // namespace nibble::worker
