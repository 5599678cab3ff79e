// What becomes of OpenSSL when the process exits.
#pragma once

namespace nibble {

// For the start of main, before anything has used OpenSSL: it stays as it is until the process is gone. By
// itself it takes its locks away at exit, while threads of gRPC may be in a handshake, and the process dies.
void KeepOpenSsl();

}  // namespace nibble
