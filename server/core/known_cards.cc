#include "server/core/known_cards.h"

namespace nibble::core {

const std::vector<KnownCard>& KnownCards() {
  constexpr int64_t kMiB = int64_t{1} << 20;
  static const auto& cards = *new std::vector<KnownCard>{
      {"card-24gb", "24 GB card (A10, L4), 23028 MiB usable", 23'028 * kMiB},
      {"card-48gb", "48 GB card (A40, L40S), 46068 MiB usable", 46'068 * kMiB},
      {"card-80gb", "80 GB card (A100, H100), 81559 MiB usable", 81'559 * kMiB},
      {"card-141gb", "141 GB card (H200), 143771 MiB usable", 143'771 * kMiB}};
  return cards;
}

spec::DeviceProfile CardProfile(const KnownCard& card) {
  return {.backend = "cuda",
          .body = "card",
          .build = "",
          .threads = 1,
          .act_bytes = 2,
          .fixed_bytes = kCardProcessBytes,
          .capacity_bytes = card.usable_bytes};
}

}  // namespace nibble::core
