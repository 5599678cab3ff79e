// Rows of a file to token ids and labels.
//
// Formats: messages, sharegpt, alpaca, completion, text; named, or detected from the first row.
// Files: JSON lines or one JSON array. Reading is streaming and bounded (line <= 4 MiB, rows <= 10
// million, depth <= 32, strict UTF-8); every bad row is reported by path
// ("rows[12].messages[0].role", counted from 0), up to 100 of them, and nothing is trained on a
// file with a bad row.
//
// Labels are next-token aligned: labels[i] is what position i must predict, -1 = nothing; the last
// is always -1, so examples packed behind each other never predict across their border. Tokens stay on the
// disk (token_store.h).
//
// Functions of their arguments.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/data/data_report.h"
#include "engine/data/token_store.h"
#include "engine/spec/train_spec.h"
#include "engine/text/tokenizer.h"

namespace nibble::engine {

struct Dataset {
  TokenStore tokens;
  std::vector<int32_t> train;  // examples of `tokens`, in file order
  std::vector<int32_t> eval;
  DataReport report;

  // Tokens of each example of a part.
  std::vector<int32_t> Lengths(const std::vector<int32_t>& part) const;
};

struct LoadOptions {
  int64_t model_vocab = 0;  // > 0: a token the model has no row for is refused (TOKENIZER_UNSUPPORTED)
  std::string scratch_dir;  // for the tokens; "" is the system's for temporary files
  // Asked before every row; true: it is given up, with an error of no reason. May be empty.
  std::function<bool()> stop;
};

// `eval_path` may be empty; then val_set_size of `spec` splits rows off, keyed by seed and row
// number. `spec` must be resolved. Errors: DATASET_SCHEMA_MISMATCH with violations, DATASET_EMPTY,
// NO_SUPERVISED_TOKENS, CHAT_TEMPLATE_INVALID, REQUEST_TOO_LARGE; STORAGE_FULL.
absl::StatusOr<Dataset> LoadDataset(const std::string& path, const std::string& eval_path,
                                    const Tokenizer& tokenizer, const spec::TrainSpec& spec,
                                    const LoadOptions& options = {});

// What `nibble-engine validate` does: loads the data set and writes the report as JSON, or, when
// the data is bad, {"error": {reason, message, violations}}; the error is returned too.
struct ValidateOptions {
  std::string model_dir;
  std::string dataset;
  std::string eval_dataset;  // may be empty
  std::string spec_path;     // TrainSpec as JSON
  std::string out_path;
};
absl::Status RunValidate(const ValidateOptions& options);

}  // namespace nibble::engine
