#include "base/keep_openssl.h"

#include <openssl/crypto.h>

#include "base/status.h"

namespace nibble {

void KeepOpenSsl() { CHECK(OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, nullptr) == 1); }

}  // namespace nibble
