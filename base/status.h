// Status macros and CHECK.
//
// Anything the world can cause is an absl::Status; CHECK is for our own bugs and stays on in release:
// better a located crash than a wrong state.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define NIBBLE_CONCAT_INNER(a, b) a##b
#define NIBBLE_CONCAT(a, b) NIBBLE_CONCAT_INNER(a, b)

// Returns the status of `expr` from the enclosing function unless it is OK.
#define RETURN_IF_ERROR(expr)                        \
  do {                                               \
    ::absl::Status nibble_status = (expr);           \
    if (!nibble_status.ok()) return nibble_status;   \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x is the value of F(), or the function returns F()'s status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  NIBBLE_ASSIGN_OR_RETURN(NIBBLE_CONCAT(nibble_statusor_, __LINE__), lhs, expr)
#define NIBBLE_ASSIGN_OR_RETURN(tmp, lhs, expr)  \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = std::move(tmp).value()

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

#define CHECK_OK(expr)                                                                      \
  do {                                                                                      \
    const ::absl::Status nibble_status = (expr);                                            \
    if (!nibble_status.ok()) [[unlikely]] {                                                 \
      std::fprintf(stderr, "%s:%d: CHECK_OK failed: %s: %s\n", __FILE__, __LINE__, #expr,   \
                   nibble_status.ToString().c_str());                                       \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)
