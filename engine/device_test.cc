// Which kernels a device's name and the environment choose.
#include "engine/device.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tables.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

TEST(OpenBackend, RefusesAnInstructionSetThatNobodyHas) {
  const auto open = [](const char* device, const char* asked) {
    setenv("NIBBLE_CPU_ISA", asked, 1);
    auto backend = OpenBackend(device, 1);
    unsetenv("NIBBLE_CPU_ISA");
    return backend;
  };
  EXPECT_THAT(open("cpu", "avx-2").status().message(), HasSubstr("NIBBLE_CPU_ISA is avx-2"));
  // Of what there is, each machine takes what it has; and who names a body did not ask the environment.
  for (const char* word : {"", "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"}) {
    EXPECT_TRUE(open("cpu", word).ok()) << word;
  }
  EXPECT_TRUE(open("cpu:portable", "avx-2").ok());
  EXPECT_TRUE(open("ref", "avx-2").ok());
}

TEST(OpenBackend, ABodyIsPartOfTheNumericsId) {
  for (const std::string_view body : kernels::CpuBodies()) {
    const std::string device = "cpu:" + std::string(body);
    const auto backend = OpenBackend(device, 1);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_THAT(NumericsId((*backend)->table()), HasSubstr("/cpu/" + std::string(body)));
  }
  EXPECT_FALSE(OpenBackend("cpu:avx-2", 1).ok());
}

}  // namespace
}  // namespace nibble::engine
