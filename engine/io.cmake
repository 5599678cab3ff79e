# What the engine reads and writes: checkpoints and adapters.
nibble_library(nibble_engine_io
  SRCS adapter.cc adapter_export.cc base_cache.cc base_sum.cc device_encoder.cc base_model.cc base_tensors.cc
       bnb_tensor.cc locked_file.cc merge.cc merged_weights.cc safetensors.cc
  DEPS nibble_engine_text nibble_spec nibble_kernels)
set_source_files_properties(base_model.cc PROPERTIES NIBBLE_APART ON)
target_link_libraries(nibble_engine_io PRIVATE nlohmann_json::nlohmann_json)

nibble_test(safetensors_test SRCS safetensors_test.cc DEPS nibble_engine_io)
nibble_library(nibble_engine_files_testing SRCS testing/bnb_checkpoint.cc testing/tiny_directory.cc
               DEPS nibble_engine_io nibble_kernels)
target_link_libraries(nibble_engine_files_testing PRIVATE nlohmann_json::nlohmann_json)
nibble_test(base_model_test SRCS base_model_test.cc DEPS nibble_engine_files_testing)
nibble_test(merge_test SRCS merge_test.cc DEPS nibble_engine_files_testing nlohmann_json::nlohmann_json)
nibble_test(adapter_test SRCS adapter_test.cc DEPS nibble_engine_io nlohmann_json::nlohmann_json)
