# The step, the jobs and nibble-engine.
nibble_library(nibble_engine_step
  SRCS kernel_executor.cc kernel_executor_linear.cc lockstep.cc model_args.cc region.cc
  DEPS nibble_base nibble_spec nibble_kernels)

nibble_library(nibble_engine_train
  SRCS base_view.cc checkpoint.cc commands.cc crash_line.cc decoder.cc device.cc flags.cc fused_turn.cc generate.cc
       generate_command.cc job.cc job_run.cc line.cc merge_command.cc output_ring.cc preparer.cc protocol.cc serve.cc serve_input.cc speed.cc
       train_command.cc turns.cc
  DEPS nibble_engine_step nibble_engine_io nibble_engine_data)
target_compile_definitions(nibble_engine_train PUBLIC NIBBLE_VERSION="${PROJECT_VERSION}")
target_link_libraries(nibble_engine_train PRIVATE nlohmann_json::nlohmann_json)

# What --device cuda is: see kernels/backend.h. Tests, and the dry run of ./dev gpu, have the emulation.
nibble_binary(nibble-engine SRCS main.cc DEPS nibble_engine_train nibble_kernels_cuda)
if(NIBBLE_BUILD_TESTS)
  nibble_binary(nibble-engine-emulated SRCS main.cc
                DEPS nibble_engine_train nibble_kernels_cuda_emulated)
endif()
nibble_test(trainer_parts_test
  SRCS checkpoint_test.cc device_test.cc generate_test.cc output_ring_test.cc protocol_test.cc turns_test.cc
  DEPS nibble_engine_train nibble_kernels_cuda_emulated nlohmann_json::nlohmann_json)
nibble_test(job_test SRCS job_test.cc DEPS nibble_engine_train nibble_kernels_cuda_emulated nibble_engine_files_testing)
nibble_test(serve_test SRCS serve_test.cc serve_prepare_test.cc serve_stop_test.cc
            DEPS nibble_engine_train nibble_kernels_cuda_emulated nibble_engine_files_testing nlohmann_json::nlohmann_json)
nibble_test(decoder_test SRCS decoder_test.cc
            DEPS nibble_engine_train nibble_kernels_cuda_emulated nibble_engine_files_testing)
nibble_library(nibble_engine_testing SRCS testing/recording_table.cc testing/tiny_model.cc
               DEPS nibble_engine_step)

# The counting malloc is compiled into the tests that use it: nobody else should have it.
nibble_test(allocation_test SRCS allocation_test.cc testing/malloc_count.cc
            DEPS nibble_engine_train nibble_kernels_cuda_emulated nibble_engine_files_testing)
nibble_test(plan_exact_test SRCS plan_exact_test.cc testing/malloc_count.cc
            DEPS nibble_engine_step nibble_kernels_cuda_emulated nibble_engine_testing)

nibble_test(step_test
  SRCS kernel_executor_test.cc region_test.cc workspace_test.cc
  DEPS nibble_engine_step nibble_kernels_cuda_emulated nibble_engine_testing)

nibble_test(reference_models_test SRCS reference_models_test.cc
            DEPS nibble_engine_train nibble_kernels_cuda_emulated nlohmann_json::nlohmann_json)
nibble_test(cuda_training_test SRCS cuda_training_test.cc
            DEPS nibble_engine_train nibble_kernels_cuda_emulated nibble_engine_files_testing
                 nibble_engine_testing)
