# The step, the jobs and nibble-engine.
nibble_library(nibble_engine_step
  SRCS kernel_executor.cc line.cc region.cc
  DEPS nibble_base nibble_spec nibble_kernels)
target_link_libraries(nibble_engine_step PRIVATE nlohmann_json::nlohmann_json)

nibble_library(nibble_engine_train
  SRCS base_view.cc checkpoint.cc device.cc job.cc
  DEPS nibble_engine_step nibble_engine_io)
target_compile_definitions(nibble_engine_train PRIVATE NIBBLE_VERSION="${PROJECT_VERSION}")
target_link_libraries(nibble_engine_train PRIVATE nlohmann_json::nlohmann_json)

nibble_library(nibble_engine_testing SRCS testing/tiny_model.cc DEPS nibble_engine_step)

nibble_test(step_test
  SRCS kernel_executor_test.cc region_test.cc workspace_test.cc
  DEPS nibble_engine_step nibble_engine_testing)
