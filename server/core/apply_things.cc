// Events of what jobs refer to and of what they leave: data sets, models, adapters, blobs, requests.
#include <algorithm>

#include "server/core/apply_internal.h"

namespace nibble::core {

void Applier::operator()(const DatasetCreated& e) {
  state_.datasets[e.dataset.id] = e.dataset;
  state_.touched.datasets.insert(e.dataset.id);
}

void Applier::operator()(const DatasetDeleted& e) {
  state_.datasets.erase(e.dataset_id);
  state_.touched.datasets.insert(e.dataset_id);
}

void Applier::operator()(const ModelRegistered& e) {
  state_.models[e.model.id] = e.model;
  state_.touched.models.insert(e.model.id);
}

void Applier::operator()(const ModelDeleted& e) {
  state_.models.erase(e.model_id);
  state_.touched.models.insert(e.model_id);
}

void Applier::operator()(const AdapterDeleted& e) {
  state_.adapters.erase(e.adapter_id);
  state_.touched.adapters.insert(e.adapter_id);
}

void Applier::operator()(const BlobRecorded& e) {
  state_.blobs[e.sha256] = {e.sha256, e.size_bytes, e.pin_until_us, {}};
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const BlobShown& e) {
  const auto it = state_.blobs.find(e.sha256);
  if (it == state_.blobs.end()) return;
  it->second.projects.insert(e.project);
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const BlobPinned& e) {
  const auto it = state_.blobs.find(e.sha256);
  if (it != state_.blobs.end()) it->second.pin_until_us = std::max(it->second.pin_until_us, e.pin_until_us);
}

void Applier::operator()(const BlobForgotten& e) {
  state_.blobs.erase(e.sha256);
  state_.touched.blobs.insert(e.sha256);
}

void Applier::operator()(const RequestExpired& e) {
  const auto it = state_.requests.find({e.tenant, e.request_id});
  if (it != state_.requests.end())
    state_.requests_by_age.erase({it->second.create_unix_us, it->first});
  state_.requests.erase({e.tenant, e.request_id});
  state_.touched.requests.insert({e.tenant, e.request_id});
}

}  // namespace nibble::core
