# The edges of the server: what speaks to the disk, the network and Prometheus.

nibble_library(nibble_server_blobs
  SRCS blob_store.cc blob_store_checks.cc blob_store_directory.cc blob_store_memory.cc
  DEPS nibble_base)
nibble_test(blob_store_test SRCS blob_store_test.cc DEPS nibble_server_blobs)

nibble_library(nibble_server_checks
  SRCS dataset_check.cc row_splitter.cc
  DEPS nibble_base nlohmann_json::nlohmann_json)
nibble_test(dataset_check_test SRCS dataset_check_test.cc DEPS nibble_server_checks)

nibble_library(nibble_server_convert
  SRCS rpc/convert.cc rpc/convert_spec.cc rpc/page.cc rpc/status.cc
  DEPS nibble_base nibble_proto nibble_spec nibble_core)
target_compile_options(nibble_server_convert PRIVATE -O1)

nibble_library(nibble_server_auth
  SRCS auth.cc tls_files.cc
  DEPS nibble_base)
target_link_libraries(nibble_server_auth PRIVATE nlohmann_json::nlohmann_json OpenSSL::Crypto)
nibble_test(auth_test SRCS auth_test.cc tls_files_test.cc DEPS nibble_server_auth nibble_proto OpenSSL::Crypto)
