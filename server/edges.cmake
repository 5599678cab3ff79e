# The edges of the server: what speaks to the disk, the network and Prometheus.

nibble_library(nibble_server_blobs
  SRCS blob_store.cc blob_store_checks.cc blob_store_directory.cc blob_store_memory.cc
  DEPS nibble_base)
nibble_test(blob_store_test SRCS blob_store_test.cc DEPS nibble_server_blobs)
