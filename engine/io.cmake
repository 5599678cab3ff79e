# What the engine reads and writes: checkpoints, tokenizers, data sets, adapters.
nibble_library(nibble_engine_io
  SRCS adapter.cc adapter_export.cc base_cache.cc base_sum.cc device_encoder.cc base_model.cc base_tensors.cc bnb_tensor.cc
       chat_template.cc data_report.cc dataset.cc dataset_format.cc dataset_rows.cc jinja_builtin.cc jinja_eval.cc
       jinja_lex.cc jinja_parse.cc jinja_value.cc json.cc locked_file.cc merge.cc merged_weights.cc packing.cc safetensors.cc text.cc
       tokenizer.cc tokenizer_added.cc tokenizer_bpe.cc tokenizer_load.cc tokenizer_pre.cc tokenizer_scan.cc
       tokenizer_text.cc token_store.cc validate.cc
  DEPS nibble_base nibble_spec nibble_kernels)
set_source_files_properties(base_model.cc PROPERTIES NIBBLE_APART ON)
target_link_libraries(nibble_engine_io PRIVATE simdjson::simdjson PkgConfig::UTF8PROC
                                               nlohmann_json::nlohmann_json)

nibble_test(safetensors_test SRCS safetensors_test.cc DEPS nibble_engine_io)
if(NIBBLE_BUILD_TESTS)
  nibble_binary(tokenizer_check SRCS tokenizer_check.cc
                DEPS nibble_engine_io nlohmann_json::nlohmann_json)
endif()
nibble_test(tokenizer_test SRCS tokenizer_test.cc
            DEPS nibble_engine_io nlohmann_json::nlohmann_json)
nibble_test(dataset_test SRCS dataset_test.cc packing_test.cc token_store_test.cc
            DEPS nibble_engine_io nlohmann_json::nlohmann_json)
nibble_library(nibble_engine_files_testing SRCS testing/bnb_checkpoint.cc testing/tiny_directory.cc
               DEPS nibble_engine_io nibble_kernels)
target_link_libraries(nibble_engine_files_testing PRIVATE nlohmann_json::nlohmann_json)
nibble_test(base_model_test SRCS base_model_test.cc DEPS nibble_engine_files_testing)
nibble_test(merge_test SRCS merge_test.cc DEPS nibble_engine_files_testing nlohmann_json::nlohmann_json)
nibble_test(adapter_test SRCS adapter_test.cc DEPS nibble_engine_io nlohmann_json::nlohmann_json)
nibble_test(jinja_test SRCS jinja_test.cc DEPS nibble_engine_io nlohmann_json::nlohmann_json)
