# The edges of the server: what speaks to the disk, the network and Prometheus.

nibble_library(nibble_server_blobs
  SRCS blob_store.cc blob_store_checks.cc blob_store_directory.cc blob_store_memory.cc blob_upload.cc
  DEPS nibble_base)
nibble_test(blob_store_test SRCS blob_store_test.cc DEPS nibble_server_blobs)

nibble_library(nibble_server_health SRCS store_health.cc trouble_log.cc DEPS nibble_base)

nibble_library(nibble_server_checks
  SRCS dataset_check.cc model_check.cc model_shapes.cc rooted_files.cc
  DEPS nibble_base nibble_spec)
target_link_libraries(nibble_server_checks PRIVATE nlohmann_json::nlohmann_json)
nibble_test(dataset_check_test SRCS dataset_check_test.cc DEPS nibble_server_checks)
nibble_test(model_check_test SRCS model_check_test.cc DEPS nibble_server_checks)

nibble_library(nibble_server_auth
  SRCS auth.cc server_certificate.cc tls_files.cc
  DEPS nibble_base)
target_link_libraries(nibble_server_auth PRIVATE nlohmann_json::nlohmann_json OpenSSL::Crypto)
nibble_test(auth_test
  SRCS auth_test.cc tls_files_test.cc
  DEPS nibble_server_auth nibble_proto OpenSSL::Crypto)

# -O1: gRPC's templates are large and never hot here.
nibble_library(nibble_server_convert
  SRCS rpc/convert.cc rpc/convert_spec.cc rpc/job_request.cc rpc/page.cc rpc/status.cc
       rpc/worker_convert.cc
  DEPS nibble_base nibble_proto nibble_spec nibble_core)
target_compile_options(nibble_server_convert PRIVATE -O1)

nibble_library(nibble_server_rpc
  SRCS blob_owners.cc io_pool.cc plan_desk.cc ticker.cc
       rpc/adapter_service.cc rpc/blob_service.cc rpc/call.cc
       rpc/dataset_service.cc rpc/fleet_service.cc rpc/job_reads.cc rpc/job_service.cc
       rpc/explain_job.cc rpc/job_watch.cc rpc/model_service.cc rpc/plan_job.cc rpc/upload.cc rpc/worker_service.cc
  DEPS nibble_server_convert nibble_server_blobs nibble_server_checks nibble_server_auth
       nibble_server_health nibble_control)
target_compile_options(nibble_server_rpc PRIVATE -O1)

nibble_library(nibble_server_meter
  SRCS http.cc meter.cc meter_process.cc meter_state.cc metered.cc
  DEPS nibble_server_blobs nibble_server_auth nibble_server_health nibble_control)
target_link_libraries(nibble_server_meter PRIVATE prometheus-cpp::core civetweb)
target_compile_definitions(nibble_server_meter PRIVATE NIBBLE_VERSION="${PROJECT_VERSION}")

nibble_library(nibble_server_grpc
  SRCS rpc/credentials.cc rpc/grpc_server.cc rpc/interceptor.cc
  DEPS nibble_server_rpc nibble_server_meter grpc++_reflection)
target_compile_options(nibble_server_grpc PRIVATE -O1)

nibble_library(nibble_server_app
  SRCS backup.cc data_dir.cc flags.cc keeper.cc memory_history.cc server.cc verify.cc
  DEPS nibble_server_grpc)
nibble_binary(nibble-server SRCS main.cc DEPS nibble_server_app)
target_compile_definitions(nibble-server PRIVATE NIBBLE_VERSION="${PROJECT_VERSION}")

nibble_test(server_convert_test SRCS rpc/convert_test.cc DEPS nibble_server_convert nibble_control)
nibble_test(server_parts_test
  SRCS keeper_test.cc parts_test.cc rpc/credentials_test.cc rpc/gone_callers_test.cc rpc/job_watch_test.cc
       store_health_test.cc trouble_log_test.cc
  DEPS nibble_server_app)
nibble_test(server_test SRCS server_test.cc DEPS nibble_server_app)
nibble_test(plan_job_test SRCS plan_job_test.cc DEPS nibble_server_app)
if(TARGET server_test)
  target_compile_options(server_test PRIVATE -O0)
  target_compile_options(plan_job_test PRIVATE -O0)
endif()
