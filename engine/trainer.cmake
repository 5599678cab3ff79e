# The step, the jobs and nibble-engine.
nibble_library(nibble_engine_step
  SRCS kernel_executor.cc region.cc
  DEPS nibble_base nibble_spec nibble_kernels)

nibble_library(nibble_engine_testing SRCS testing/tiny_model.cc DEPS nibble_engine_step)

nibble_test(step_test
  SRCS kernel_executor_test.cc region_test.cc workspace_test.cc
  DEPS nibble_engine_step nibble_engine_testing)
