// A test fixture for deaths that are wanted: tests/run_tests.py takes every report of a sanitizer for a
// finding, a failed CHECK's among them, so these make none.
#pragma once

#include <gtest/gtest.h>

#include <csignal>

namespace nibble::kernels::cuda_emulated {

class WantedDeathTest : public testing::Test {
 protected:
  void SetUp() override { before_ = std::signal(SIGABRT, SIG_DFL); }
  void TearDown() override { std::signal(SIGABRT, before_); }

 private:
  void (*before_)(int) = SIG_DFL;
};

}  // namespace nibble::kernels::cuda_emulated
