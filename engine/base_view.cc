#include "engine/base_view.h"

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

}  // namespace nibble::engine
