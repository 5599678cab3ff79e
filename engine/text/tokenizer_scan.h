// The split patterns of known tokenizers as hand-written scanners.
//
// tokenizer.json carries regular expressions; we never execute them. A pattern is recognised by its
// exact text and stands for a scanner here, which runs in linear time. Pure; thread-safe.
#pragma once

#include <cstddef>
#include <string_view>

namespace nibble::engine::tokenizer {

// Bytes of the match that begins exactly at `pos` (valid UTF-8, pos < size); 0 = none begins there.
using Scanner = size_t (*)(std::string_view text, size_t pos);

// Null for a pattern we do not know.
Scanner ScannerForPattern(std::string_view pattern);

size_t ScanGpt2(std::string_view text, size_t pos);
size_t ScanDigit(std::string_view text, size_t pos);          // one \p{N}
size_t ScanPunctuation(std::string_view text, size_t pos);    // one, ASCII symbols included
size_t ScanSpace(std::string_view text, size_t pos);          // one \s
size_t ScanWordOrSymbols(std::string_view text, size_t pos);  // \w+|[^\w\s]+

}  // namespace nibble::engine::tokenizer
