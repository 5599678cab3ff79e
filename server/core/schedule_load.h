// Bytes admitted on a device: the one formula of admission.
//
//   sum over the bases on it of (fixed + base + sum(persistent) + sum(host) + max(step)) <= capacity
//
// Where the device's memory is not the host's, sum(host) is not in it; it and sum(page-locked) have bounds
// of their own, the worker's, and each must hold apart. Every figure of a plan is below 2^50 (the planner
// refuses more), and a device has at most some hundreds of attempts, so no sum comes near 2^63.
//
// A value; keys are what a base is called by whoever counts (its GroupKey, or a number for it).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/container/inlined_vector.h"
#include "server/core/options.h"
#include "server/core/types.h"

namespace nibble::core {

// Of the host, beside a device's own memory.
struct HostPart {
  int64_t pinned_bytes = 0;  // page-locked
  int64_t host_bytes = 0;

  bool operator==(const HostPart&) const = default;
};

// What a device may be given in all. Of the host's two, 0 is "not said", so not limited.
struct Capacity {
  int64_t device_bytes = 0;
  HostPart beside;

  Capacity() = default;
  explicit Capacity(int64_t bytes) : device_bytes(bytes) {}
  explicit Capacity(const Device& device)
      : device_bytes(device.capacity_bytes),
        beside{device.profile.pinned_capacity_bytes, device.profile.host_capacity_bytes} {}
  explicit Capacity(const spec::DeviceProfile& profile)
      : device_bytes(profile.capacity_bytes),
        beside{profile.pinned_capacity_bytes, profile.host_capacity_bytes} {}
  bool Holds(const HostPart& part) const {
    const auto within = [](int64_t bytes, int64_t bound) { return bound == 0 || bytes <= bound; };
    return within(part.pinned_bytes, beside.pinned_bytes) && within(part.host_bytes, beside.host_bytes);
  }
  bool operator==(const Capacity&) const = default;
};

// The share of a device's time that a job keeps busy, on a device of another speed: its turns take longer or
// shorter there, the host's work between them does not. Speeds as SpeedOf; 0 = not known, so the same.
inline int32_t LoadAtSpeed(int32_t load_milli, int64_t from_mflops, int64_t to_mflops) {
  if (from_mflops <= 0 || to_mflops <= 0 || from_mflops == to_mflops) return load_milli;
  const int64_t turn = std::max<int64_t>(1, load_milli * from_mflops / to_mflops);
  const int64_t host = std::max(0, 1'000 - load_milli);
  return static_cast<int32_t>(std::max<int64_t>(1, turn * 1'000 / (turn + host)));
}

// The parts of a plan that are admitted.
struct Need {
  int64_t fixed_bytes = 0;
  int64_t base_bytes = 0;
  int64_t persistent_bytes = 0;
  int64_t host_bytes = 0;  // as far as it counts against the device
  int64_t step_bytes = 0;
  HostPart beside;

  Need() = default;
  Need(const PlanBytes& plan)  // NOLINT: a plan is what is needed
      : fixed_bytes(plan.fixed_bytes),
        base_bytes(plan.base_bytes),
        persistent_bytes(plan.persistent_bytes),
        step_bytes(plan.step_bytes) {
    host_bytes = plan.TotalBytes() - fixed_bytes - base_bytes - persistent_bytes - step_bytes;
    beside = {plan.pinned_bytes, plan.host_bytes - host_bytes};
  }
  // Alone on a device.
  bool FitsAlone(const Capacity& capacity) const {
    return TotalBytes() <= capacity.device_bytes && capacity.Holds(beside);
  }
  int64_t TotalBytes() const {
    return fixed_bytes + base_bytes + persistent_bytes + host_bytes + step_bytes;
  }
  bool operator==(const Need&) const = default;
};

template <typename Key>
struct LoadOn {
  struct Group {
    Key key{};
    Need need;  // fixed, base, step: the largest; persistent, host: the sum
    int32_t attempts = 0;
    bool alone = false;
    bool operator==(const Group&) const = default;
  };
  absl::InlinedVector<Group, 4> groups;
  int32_t attempts = 0;
  int64_t total_bytes = 0;
  HostPart beside;  // the sum

  const Group* Find(const Key& key) const {
    for (const Group& group : groups) {
      if (group.key == key) return &group;
    }
    return nullptr;
  }
  // Bytes one more attempt would add.
  int64_t Added(const Key& key, const Need& need) const {
    const Group* group = Find(key);
    if (group == nullptr) return need.TotalBytes();
    return need.persistent_bytes + need.host_bytes +
           std::max<int64_t>(0, need.fixed_bytes - group->need.fixed_bytes) +
           std::max<int64_t>(0, need.base_bytes - group->need.base_bytes) +
           std::max<int64_t>(0, need.step_bytes - group->need.step_bytes);
  }
  // The host's part with one more attempt.
  HostPart Beside(const Need& need) const {
    return {beside.pinned_bytes + need.beside.pinned_bytes, beside.host_bytes + need.beside.host_bytes};
  }
  // Whether one more attempt may come in.
  bool Fits(const Capacity& capacity, const Key& key, const Need& need, bool alone,
            const SchedulePolicy& policy) const {
    if (attempts >= policy.max_attempts_per_device) return false;
    const Group* group = Find(key);
    if (group == nullptr) {
      if (static_cast<int32_t>(groups.size()) >= policy.max_bases_per_device) return false;
    } else if (alone || group->alone) {
      return false;
    }
    return total_bytes + Added(key, need) <= capacity.device_bytes && capacity.Holds(Beside(need));
  }
  void Add(const Key& key, const Need& need, bool alone) {
    total_bytes += Added(key, need);
    beside = Beside(need);
    ++attempts;
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const Group& g) { return g.key == key; });
    if (group == groups.end()) {
      groups.push_back({key, need, 1, alone});
      return;
    }
    Need& sum = group->need;
    sum.fixed_bytes = std::max(sum.fixed_bytes, need.fixed_bytes);
    sum.base_bytes = std::max(sum.base_bytes, need.base_bytes);
    sum.step_bytes = std::max(sum.step_bytes, need.step_bytes);
    sum.persistent_bytes += need.persistent_bytes;
    sum.host_bytes += need.host_bytes;
    group->alone = group->alone || alone;
    ++group->attempts;
  }
  int64_t TotalBytes() const { return total_bytes; }
};
// By GroupKey.
using DeviceLoad = LoadOn<std::string>;

}  // namespace nibble::core
