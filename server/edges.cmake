# The edges of the server: what speaks to the disk, the network and Prometheus.

nibble_library(nibble_server_blobs
  SRCS blob_store.cc blob_store_checks.cc blob_store_directory.cc blob_store_memory.cc
  DEPS nibble_base)
nibble_test(blob_store_test SRCS blob_store_test.cc DEPS nibble_server_blobs)

nibble_library(nibble_server_checks
  SRCS dataset_check.cc row_splitter.cc
  DEPS nibble_base nlohmann_json::nlohmann_json)
nibble_test(dataset_check_test SRCS dataset_check_test.cc DEPS nibble_server_checks)
