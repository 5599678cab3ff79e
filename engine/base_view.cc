#include "engine/base_view.h"

#include <type_traits>

#include "engine/base_model.h"

namespace nibble::engine {

BaseView ViewOf(const BaseModel& base) {
  BaseView view;
  view.layers.resize(static_cast<size_t>(base.config().layers));
  for (int64_t i = 0; i < base.config().layers; ++i) {
    BaseView::Layer& layer = view.layers[static_cast<size_t>(i)];
    for (int m = 0; m < spec::kModuleCount; ++m) {
      layer.linear[m] = base.Linear(i, static_cast<spec::Module>(m));
      layer.bias[m] = base.Bias(i, static_cast<spec::Module>(m));
    }
    layer.input_norm = base.InputNorm(i);
    layer.post_norm = base.PostNorm(i);
    layer.q_norm = base.QNorm(i);
    layer.k_norm = base.KNorm(i);
  }
  view.final_norm = base.FinalNorm();
  view.embedding = base.Embedding();
  view.head = base.Head();
  return view;
}

BaseView MovedView(BaseView view, const std::byte* from, std::byte* to) {
  const auto move = [&](auto*& data) {
    if (data == nullptr) return;
    const auto* at = reinterpret_cast<const std::byte*>(data);
    data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(to + (at - from));
  };
  for (BaseView::Layer& layer : view.layers) {
    for (int m = 0; m < spec::kModuleCount; ++m) {
      kernels::WeightView& w = layer.linear[m];
      move(w.data);
      move(w.absmax);
      move(w.absmax_codes);
      move(w.nested_absmax);
      move(w.nested_map);
      move(w.code_book);
      move(layer.bias[m].data);
    }
    for (kernels::ParamView* norm :
         {&layer.input_norm, &layer.post_norm, &layer.q_norm, &layer.k_norm}) {
      move(norm->data);
    }
  }
  for (kernels::ParamView* param : {&view.final_norm, &view.embedding, &view.head}) move(param->data);
  return view;
}

}  // namespace nibble::engine
