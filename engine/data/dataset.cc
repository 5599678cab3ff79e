#include "engine/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/error.h"
#include "base/status.h"
#include "engine/data/dataset_format.h"
#include "engine/data/dataset_rows.h"
#include "engine/data/packing.h"
#include "engine/text/chat_template.h"
#include "engine/text/text.h"
#include "kernels/counter.h"

namespace nibble::engine {
namespace {

constexpr size_t kMaxViolations = 100;
constexpr size_t kMaxFirstRows = 10;
constexpr size_t kMaxSamples = 3;
constexpr size_t kMaxSampleBytes = 4000;
constexpr uint64_t kSplitStream = 0x73706C6974000000ull;  // of CounterBits; only for the eval split
constexpr int64_t kRowsForDefaultSplit = 200;
constexpr double kDefaultSplit = 0.05;

// All bad rows of a file; the first hundred by path.
class Violations {
 public:
  explicit Violations(std::string label) : label_(std::move(label)) {}
  void Add(int64_t row, const RowProblem& problem) {
    ++count_;
    if (violations_.size() >= kMaxViolations) return;
    violations_.push_back({absl::StrCat(label_, "[", row, "]", problem.path), problem.what});
  }
  bool empty() const { return count_ == 0; }
  // `format` as the recipe has it: where no row at all is such a one, it may be the recipe that is wrong.
  absl::Status ToStatus(int64_t rows, const std::string& format) const {
    const bool misnamed = count_ == rows && format != "auto";
    Error error(Reason::kDatasetSchemaMismatch,
                absl::StrCat(count_, " of ", rows, " rows are wrong; the first: ",
                             violations_[0].field, " ", violations_[0].description,
                             misnamed ? absl::StrCat("; the recipe calls them ", format,
                                                     " (datasets[0].type), auto goes by what they are")
                                      : ""));
    error.With("bad_rows", absl::StrCat(count_)).With("rows", absl::StrCat(rows));
    for (const FieldViolation& v : violations_) error.Violation(v.field, v.description);
    return error;
  }

 private:
  std::string label_;
  int64_t count_ = 0;
  std::vector<FieldViolation> violations_;
};

// Rows of one file become examples; the report grows with them.
class Loader {
 public:
  Loader(const Tokenizer& tokenizer, const spec::TrainSpec& spec, const LoadOptions& options,
         TokenStore& tokens, DataReport& report)
      : tokenizer_(tokenizer), spec_(spec), options_(options), tokens_(tokens), report_(report) {}

  // The examples that came of the file.
  absl::StatusOr<std::vector<int32_t>> Load(const std::string& path, const std::string& label) {
    Violations violations(label);
    RowReader reader(RowFormatFromName(spec_.format), spec_.train_on_inputs);
    const int64_t first = tokens_.count();
    int64_t rows = 0;
    RETURN_IF_ERROR(
        ForEachRow(path, label, [&](int64_t row, std::string_view text) -> absl::Status {
          if (options_.stop && options_.stop()) return absl::CancelledError("reading was stopped");
          ++rows;
          ParsedRow parsed;
          if (auto problem = reader.Read(text, parsed)) {
            violations.Add(row, *problem);
            return absl::OkStatus();
          }
          if (!violations.empty()) return absl::OkStatus();  // only looking for more faults now
          return Accept(row, *reader.format(), parsed, violations);
        }));
    report_.rows += rows;
    if (rows == 0) return Error(Reason::kDatasetEmpty, "the data set has no rows");
    if (!violations.empty()) return violations.ToStatus(rows, spec_.format);
    if (report_.format.empty()) report_.format = std::string(RowFormatName(*reader.format()));
    std::vector<int32_t> examples(static_cast<size_t>(tokens_.count() - first));
    std::iota(examples.begin(), examples.end(), static_cast<int32_t>(first));
    return examples;
  }

  void Finish(DataReport& report) {
    for (auto& [reason, rejected] : rejected_) report.rejected.push_back(std::move(rejected));
    if (report.rows_without_eos > 0 && report.rows_without_eos == report.usable_rows) {
      report.warnings.push_back(
          "no row teaches the model to stop: the tokenizer names no EOS token, or "
          "no trained text ends with one");
    }
    if (empty_answers_ > 0) {
      report.warnings.push_back(
          absl::StrCat(empty_answers_, empty_answers_ == 1 ? " row has" : " rows have", " an empty answer"));
    }
    if (double_bos_ > 0) {
      report.warnings.push_back(absl::StrCat(double_bos_,
                                             " rows begin with BOS twice; it stands in the "
                                             "text and is added as well"));
    }
    if (template_ && !template_->unknown_tokens().empty()) {
      report.warnings.push_back(absl::StrCat(
          "chat template ", template_->name(), " uses ", Quote(template_->unknown_tokens()[0]),
          ", which is no token of this tokenizer; it is spelled out in ordinary tokens"));
    }
  }

 private:
  struct Encoded {
    std::vector<int32_t> ids;
    std::vector<bool> trained;  // per token

    void Append(const std::vector<int32_t>& more, bool learn) {
      ids.insert(ids.end(), more.begin(), more.end());
      trained.insert(trained.end(), more.size(), learn);
    }
  };

  absl::Status Accept(int64_t row, RowFormat format, ParsedRow& parsed, Violations& violations) {
    const bool chat = format == RowFormat::kMessages || format == RowFormat::kShareGpt;
    if (chat) {
      RETURN_IF_ERROR(SelectTemplate());
      auto pieces = template_->Render(parsed.turns, /*generation_prompt=*/false);
      if (!pieces.ok()) {
        const char* list = format == RowFormat::kMessages ? ".messages" : ".conversations";
        violations.Add(row,
                       {list, absl::StrCat("cannot be rendered: ", pieces.status().message())});
        return absl::OkStatus();
      }
      parsed.pieces = std::move(*pieces);
    }
    const bool no_text = std::all_of(parsed.pieces.begin(), parsed.pieces.end(),
                                     [](const TextPiece& piece) { return piece.text.empty(); });
    if (no_text) return Reject("empty", row);
    if (!chat && format != RowFormat::kText && IsBlank(parsed.pieces.back().text)) ++empty_answers_;
    Encoded encoded = Encode(parsed.pieces, chat);
    RETURN_IF_ERROR(CheckVocabulary(row, encoded));
    return Keep(row, std::move(encoded));
  }

  absl::Status SelectTemplate() {
    if (template_) return absl::OkStatus();
    ASSIGN_OR_RETURN(template_, ChatTemplate::Select(spec_.chat_template, tokenizer_));
    return absl::OkStatus();
  }

  Encoded Encode(const std::vector<TextPiece>& pieces, bool chat) {
    Encoded encoded;
    // A chat template writes out BOS and the end of turns itself.
    if (!chat) encoded.Append(tokenizer_.prefix(), false);
    const size_t prefix = encoded.ids.size();
    bool follows_text = false;
    for (const TextPiece& piece : pieces) {
      std::string_view text = piece.text;
      if (encoded.ids.size() > prefix) text = tokenizer_.Behind(encoded.ids.back(), text);
      if (text.empty()) continue;
      encoded.Append(tokenizer_.Encode(text, false, follows_text), piece.trained);
      follows_text = encoded.ids.empty() || !tokenizer_.IsSpecial(encoded.ids.back());
    }
    if (prefix > 0 && encoded.ids.size() > prefix && encoded.ids[prefix] == tokenizer_.bos_id() &&
        encoded.ids[prefix - 1] == tokenizer_.bos_id()) {
      ++double_bos_;
    }
    const auto eos = tokenizer_.eos_id();
    if (!chat && eos && (encoded.ids.empty() || encoded.ids.back() != *eos))
      encoded.Append({*eos}, true);
    return encoded;
  }

  absl::Status CheckVocabulary(int64_t row, const Encoded& encoded) const {
    if (options_.model_vocab == 0) return absl::OkStatus();
    for (const int32_t id : encoded.ids) {
      if (id < options_.model_vocab) continue;
      return Error(
          Reason::kTokenizerUnsupported,
          absl::StrCat("rows[", row, "] has token ", Quote(tokenizer_.TokenContent(id)),
                       " with id ", id, ", but the model has embeddings for ", options_.model_vocab,
                       " tokens only; this tokenizer does not belong to this model"));
    }
    return absl::OkStatus();
  }

  absl::Status Keep(int64_t row, Encoded encoded) {
    const auto limit = static_cast<size_t>(spec_.sequence_len);
    int64_t cut = 0;
    if (encoded.ids.size() > limit) {
      if (spec_.excess_length == spec::ExcessLength::kDrop) return Reject("too_long", row);
      cut = static_cast<int64_t>(encoded.ids.size() - limit);
      encoded.ids.resize(limit);
    }
    Example example;
    example.labels.assign(encoded.ids.size(), kNoLabel);
    int64_t learned = 0;
    for (size_t i = 0; i + 1 < encoded.ids.size(); ++i) {
      if (!encoded.trained[i + 1]) continue;
      example.labels[i] = encoded.ids[i + 1];
      ++learned;
    }
    if (learned == 0) return Reject("nothing_to_learn", row);
    if (cut > 0) {
      ++report_.truncated_rows;
      report_.truncated_tokens += cut;
    }
    example.ids = std::move(encoded.ids);
    ++report_.usable_rows;
    report_.tokens += static_cast<int64_t>(example.ids.size());
    report_.trained_tokens += learned;
    if (!seen_.insert(absl::HashOf(example.ids, example.labels)).second) ++report_.duplicate_rows;
    if (!TeachesEnd(example)) ++report_.rows_without_eos;
    if (report_.samples.size() < kMaxSamples) AddSample(row, example, learned);
    return tokens_.Add(example);
  }

  // A trained token that ends a text or a turn: EOS, or any special token.
  bool TeachesEnd(const Example& example) const {
    return std::any_of(example.labels.begin(), example.labels.end(), [&](int32_t label) {
      return label != kNoLabel && tokenizer_.IsSpecial(label);
    });
  }

  void AddSample(int64_t row, const Example& example, int64_t learned) {
    ReportSample sample;
    sample.row = row;
    sample.tokens = static_cast<int64_t>(example.ids.size());
    sample.trained_tokens = learned;
    size_t bytes = 0;
    for (size_t i = 0; i < example.ids.size() && bytes < kMaxSampleBytes;) {
      const auto trained_at = [&](size_t k) { return k > 0 && example.labels[k - 1] != kNoLabel; };
      size_t end = i + 1;
      while (end < example.ids.size() && trained_at(end) == trained_at(i)) ++end;
      const std::span<const int32_t> run(example.ids.data() + i, end - i);
      std::string text = tokenizer_.Decode(run, /*skip_special=*/false);
      if (text.size() > kMaxSampleBytes) text = RepairUtf8(text.substr(0, kMaxSampleBytes)) + "...";
      bytes += text.size();
      sample.pieces.push_back({std::move(text), trained_at(i)});
      i = end;
    }
    report_.samples.push_back(std::move(sample));
  }

  absl::Status Reject(const char* reason, int64_t row) {
    RejectedRows& rejected = rejected_[reason];
    rejected.reason = reason;
    ++rejected.rows;
    if (rejected.first_rows.size() < kMaxFirstRows) rejected.first_rows.push_back(row);
    return absl::OkStatus();
  }

  static bool IsBlank(std::string_view text) {
    return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
  }

  const Tokenizer& tokenizer_;
  const spec::TrainSpec& spec_;
  const LoadOptions& options_;
  TokenStore& tokens_;
  DataReport& report_;
  std::optional<ChatTemplate> template_;
  std::map<std::string, RejectedRows> rejected_;
  absl::flat_hash_set<size_t> seen_;
  int64_t empty_answers_ = 0;
  int64_t double_bos_ = 0;
};

// Moves the evaluation rows out of `train`: those whose keyed hash is smallest, in file order.
std::vector<int32_t> SplitOff(std::vector<int32_t>& train, const spec::TrainSpec& spec) {
  const auto rows = static_cast<int64_t>(train.size());
  double share = spec.val_set_size;
  if (share < 0) share = rows > kRowsForDefaultSplit ? kDefaultSplit : 0;
  auto wanted = static_cast<int64_t>(std::llround(share * static_cast<double>(rows)));
  wanted = std::min(wanted, rows - 1);
  if (wanted <= 0) return {};
  std::vector<std::pair<uint64_t, int64_t>> keyed;
  for (int64_t i = 0; i < rows; ++i) {
    keyed.emplace_back(kernels::CounterBits(spec.seed, kSplitStream, static_cast<uint64_t>(i)), i);
  }
  std::nth_element(keyed.begin(), keyed.begin() + wanted, keyed.end());
  std::vector<bool> chosen(train.size());
  for (int64_t i = 0; i < wanted; ++i) chosen[keyed[i].second] = true;
  std::vector<int32_t> eval, rest;
  eval.reserve(static_cast<size_t>(wanted));
  rest.reserve(static_cast<size_t>(rows - wanted));
  for (int64_t i = 0; i < rows; ++i) (chosen[i] ? eval : rest).push_back(train[i]);
  train = std::move(rest);
  return eval;
}

// Nearest rank.
int64_t Percentile(const std::vector<int32_t>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::min(std::max<size_t>(rank, 1), sorted.size()) - 1];
}

void Measure(const Dataset& data, spec::TrainSpec spec, DataReport& report) {
  std::vector<int32_t> lengths = data.Lengths(data.train);
  const std::vector<int32_t> train_lengths = lengths;
  const std::vector<int32_t> eval_lengths = data.Lengths(data.eval);
  lengths.insert(lengths.end(), eval_lengths.begin(), eval_lengths.end());
  std::sort(lengths.begin(), lengths.end());
  int64_t total = 0;
  for (const int32_t length : lengths) total += length;
  report.length = {
      lengths.front(),          Percentile(lengths, 0.05),
      Percentile(lengths, 0.5), Percentile(lengths, 0.95),
      lengths.back(),           static_cast<double>(total) / static_cast<double>(lengths.size())};
  int64_t train_tokens = 0;
  for (const int32_t length : train_lengths) train_tokens += length;
  const auto order = EpochOrder(spec.seed, 0, static_cast<int64_t>(train_lengths.size()));
  for (const bool packing : {true, false}) {
    spec.sample_packing = packing;
    const int64_t steps = StepSchedule(train_lengths, spec).total_steps();
    const int64_t rows = PackRows(train_lengths, order, spec.sequence_len, packing).count();
    const double fill = static_cast<double>(train_tokens) /
                        (static_cast<double>(rows) * static_cast<double>(spec.sequence_len));
    (packing ? report.steps_packed : report.steps_unpacked) = steps;
    (packing ? report.fill_packed : report.fill_unpacked) = fill;
  }
}

absl::Status NothingToTrain(const DataReport& report, const spec::TrainSpec& spec) {
  std::string why;
  for (const RejectedRows& rejected : report.rejected) {
    absl::StrAppend(&why, why.empty() ? "" : ", ", rejected.rows, " ",
                    absl::StrReplaceAll(rejected.reason, {{"_", " "}}));
  }
  return Error(Reason::kNoSupervisedTokens,
               absl::StrCat("none of ", report.rows, " rows leaves anything to learn (", why,
                            "); rows may be longer than data.sequence_len ", spec.sequence_len,
                            " or have no answer to train on"))
      .With("rows", absl::StrCat(report.rows));
}

}  // namespace

std::vector<int32_t> Dataset::Lengths(const std::vector<int32_t>& part) const {
  std::vector<int32_t> lengths;
  lengths.reserve(part.size());
  for (const int32_t example : part) lengths.push_back(tokens.Length(example));
  return lengths;
}

absl::StatusOr<Dataset> LoadDataset(const std::string& path, const std::string& eval_path,
                                    const Tokenizer& tokenizer, const spec::TrainSpec& spec,
                                    const LoadOptions& options) {
  Dataset data;
  DataReport& report = data.report;
  ASSIGN_OR_RETURN(data.tokens, TokenStore::Create(options.scratch_dir));
  Loader loader(tokenizer, spec, options, data.tokens, report);
  ASSIGN_OR_RETURN(data.train, loader.Load(path, "rows"));
  if (!eval_path.empty()) {
    ASSIGN_OR_RETURN(data.eval, loader.Load(eval_path, "eval_rows"));
  }
  RETURN_IF_ERROR(data.tokens.Flush());
  loader.Finish(report);
  if (data.train.empty()) return NothingToTrain(report, spec);
  if (!eval_path.empty() && data.eval.empty()) {
    report.warnings.push_back("no row of the evaluation file is usable; nothing is evaluated");
  }
  if (eval_path.empty()) data.eval = SplitOff(data.train, spec);
  report.train_rows = static_cast<int64_t>(data.train.size());
  report.eval_rows = static_cast<int64_t>(data.eval.size());
  Measure(data, spec, report);
  return data;
}

}  // namespace nibble::engine
