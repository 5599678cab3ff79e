#include "engine/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/model/stop_tokens.h"
#include "kernels/counter.h"

namespace nibble::engine {

int32_t Sample(std::span<const float> logits, double temperature, double top_p, double draw) {
  const auto best =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (temperature <= 0) return best;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  std::vector<double> weights(order.size());
  double total = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    weights[i] = std::exp((static_cast<double>(logits[order[i]]) - logits[best]) / temperature);
    total += weights[i];
  }
  // The nucleus: the shortest head of the order with at least top_p of the weight.
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < top_p * total)) kept += weights[count++];
  double left = draw * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

std::vector<int32_t> Generate(Decoder& decoder, std::span<const int32_t> prompt,
                              const std::set<int32_t>& stop_ids, const SamplingOptions& options,
                              int64_t room_tokens) {
  std::vector<int32_t> answer;
  decoder.Reset();
  std::span<const float> logits = decoder.Feed(prompt);
  while (static_cast<int64_t>(answer.size()) < options.max_tokens) {
    const double draw = kernels::CounterUniform(options.seed, options.stream, answer.size());
    const int32_t next = Sample(logits, options.temperature, options.top_p, draw);
    if (stop_ids.contains(next)) break;
    answer.push_back(next);
    if (decoder.length() >= room_tokens) break;
    if (static_cast<int64_t>(answer.size()) < options.max_tokens) {
      logits = decoder.Feed(std::span(&answer.back(), 1));
    }
  }
  return answer;
}

std::set<int32_t> StopIds(const std::string& model_dir, const Tokenizer& tokenizer,
                          const std::optional<ChatTemplate>& chat) {
  std::set<int32_t> ids;
  if (chat) {
    // A base that was never tuned may not name it: Gemma's says <eos>, and <end_of_turn> is learned.
    if (const auto end = chat->EndOfTurn()) ids.insert(*end);
  }
  if (tokenizer.eos_id()) ids.insert(*tokenizer.eos_id());
  if (tokenizer.bos_id()) ids.insert(*tokenizer.bos_id());
  ids.merge(EosIds(model_dir));
  return ids;
}

}  // namespace nibble::engine
