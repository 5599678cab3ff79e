// Pages of a list: opaque tokens, bound to the query they came from.
//
// A token holds where the last page ended and a digest of method and filter; with another filter it is
// PAGE_TOKEN_INVALID rather than a page of something else. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble::server {

inline constexpr int32_t kDefaultPageSize = 50;
inline constexpr int32_t kMaxPageSize = 1000;

// 0 = the default, more than the most = the most; negative is an error.
absl::StatusOr<int32_t> PageSize(int32_t asked);
std::string PageToken(std::string_view query, std::string_view last_key);
// The key after which to go on; "" for an empty token.
absl::StatusOr<std::string> PageStart(std::string_view query, std::string_view token);

// Calls visit(value) for a page of `items`, a map ordered by key, of those keep(value) is true for.
// Returns the token of the next page, "" at the end.
template <typename Map, typename Keep, typename Visit>
absl::StatusOr<std::string> ListPage(const Map& items, std::string_view query, int32_t page_size,
                                     std::string_view page_token, const Keep& keep, const Visit& visit) {
  auto size = PageSize(page_size);
  if (!size.ok()) return size.status();
  auto start = PageStart(query, page_token);
  if (!start.ok()) return start.status();
  auto it = start->empty() ? items.begin() : items.upper_bound(*start);
  int32_t shown = 0;
  std::string last;
  for (; it != items.end(); ++it) {
    if (!keep(it->second)) continue;
    if (shown == *size) return PageToken(query, last);
    visit(it->second);
    last = it->first;
    ++shown;
  }
  return std::string();
}

}  // namespace nibble::server
