// What text goes through before and behind the model: normalizer, pre-tokenizer and decoder.
//
// Each reads its components into the pipeline, or refuses the first that Nibble does not know.
#pragma once

#include "absl/status/status.h"
#include "engine/text/tokenizer_fields.h"
#include "engine/text/tokenizer_pipeline.h"

namespace nibble::engine::tokenizer {

absl::Status ReadNormalizers(Fields& root, Pipeline& pipeline);
// `byte_level`: the vocabulary is written in the alphabet of ByteLevel.
absl::Status ReadPreTokenizers(Fields& root, Pipeline& pipeline, bool& byte_level);
absl::Status ReadDecoders(Fields& root, Pipeline& pipeline);

}  // namespace nibble::engine::tokenizer
