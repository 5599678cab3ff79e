// A set of a few keys in one piece of memory: what a worker holds, say. Iterates in order, as std::set does;
// insert and erase move what comes after.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace nibble {

template <typename Key>
class FlatSet {
 public:
  using const_iterator = typename std::vector<Key>::const_iterator;

  const_iterator begin() const { return keys_.begin(); }
  const_iterator end() const { return keys_.end(); }
  size_t size() const { return keys_.size(); }
  bool empty() const { return keys_.empty(); }
  size_t count(const Key& key) const { return std::binary_search(begin(), end(), key) ? 1 : 0; }
  void insert(Key key) {
    const auto at = std::lower_bound(begin(), end(), key);
    if (at == end() || key < *at) keys_.insert(at, std::move(key));
  }
  void erase(const Key& key) {
    const auto at = std::lower_bound(begin(), end(), key);
    if (at != end() && *at == key) keys_.erase(at);
  }
  bool operator==(const FlatSet&) const = default;

 private:
  std::vector<Key> keys_;
};

}  // namespace nibble
