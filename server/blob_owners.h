// Which project may use the bytes of a digest.
//
// Bytes are stored once, whoever sends them, but a digest is no secret: who only knows it must not get at
// the bytes of another project by claiming to have uploaded them. A project may use what it has sent itself
// (core::Blob::projects, as long as the bytes are kept), what its own rows refer to, and the files of models,
// which are everybody's to use.
#pragma once

#include <string>

#include "server/core/state.h"

namespace nibble::server {

// `scope`: Caller::Scope; "" may use everything.
bool MayUse(const core::State& state, const std::string& scope, const std::string& sha256);
// How an upload of that project is told from one of another with the same bytes; "" of "".
std::string UploadTag(const std::string& scope);

}  // namespace nibble::server
