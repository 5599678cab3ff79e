#include "engine/model/base_view.h"

#include <type_traits>

namespace nibble::engine {

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
    for (kernels::ParamView* norm : {&layer.input_norm, &layer.post_norm, &layer.q_norm, &layer.k_norm,
                                     &layer.attention_norm, &layer.mlp_norm}) {
      move(norm->data);
    }
  }
  for (kernels::ParamView* param : {&view.final_norm, &view.embedding, &view.head}) move(param->data);
  return view;
}

}  // namespace nibble::engine
