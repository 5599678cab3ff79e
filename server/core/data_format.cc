#include "server/core/data_format.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/error.h"

namespace nibble::core {

absl::Status CheckDataFormat(const spec::TrainSpec& spec, const Dataset* dataset,
                             const Dataset* eval_dataset) {
  if (spec.format == "auto") return absl::OkStatus();
  for (const Dataset* data : {dataset, eval_dataset}) {
    if (data == nullptr || data->formats.empty()) continue;
    const auto found = std::find(data->formats.begin(), data->formats.end(), spec.format);
    if (found != data->formats.end()) continue;
    return Error::Field(Reason::kDatasetSchemaMismatch, "spec.data.format",
                        absl::StrCat("is \"", spec.format, "\", but the rows of datasets/", data->id, " are ",
                                     absl::StrJoin(data->formats, " and "),
                                     "; use auto, which goes by the rows, or a data set of such rows"))
        .With("formats", absl::StrJoin(data->formats, " "));
  }
  return absl::OkStatus();
}

}  // namespace nibble::core
