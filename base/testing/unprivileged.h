// For tests of what permissions forbid: root may do everything, and tests often run as root.
#pragma once

#include <unistd.h>

#include <string>

#include "base/file.h"

namespace nibble {

// Acts as nobody, to whom `directory` then belongs, until its end; one thread. Where the tests are
// not root it changes nothing.
class Unprivileged {
 public:
  explicit Unprivileged(const std::string& directory) : was_root_(geteuid() == 0) {
    constexpr uid_t kNobody = 65'534;
    if (!was_root_) return;
    ok_ = chown(directory.c_str(), kNobody, static_cast<gid_t>(-1)) == 0 && seteuid(kNobody) == 0 &&
          FileExists(directory);
  }
  ~Unprivileged() {
    if (was_root_) (void)!seteuid(0);
  }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;
  // False where the system has no such user, or does not let it to the directory.
  bool ok() const { return ok_; }

 private:
  const bool was_root_;
  bool ok_ = true;
};

}  // namespace nibble
