#include "server/rpc/convert_spec.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/spec/words.h"

namespace nibble::server {
namespace {

// Collects all that is wrong, so that a user sees it at once.
class Problems {
 public:
  template <typename E, size_t n>
  void Read(const char* path, std::string_view given, const spec::Word<E> (&words)[n], E& out) {
    if (const auto known = spec::FromWord(words, given)) {
      out = *known;
      return;
    }
    violations_.push_back({path, absl::StrCat("is \"", absl::string_view(given.data(), given.size()),
                                              "\"; must be one of ", spec::AllWords(words))});
  }
  void Add(std::string path, std::string what) { violations_.push_back({std::move(path), std::move(what)}); }

  absl::Status ToStatus() const {
    if (violations_.empty()) return absl::OkStatus();
    Error error(Reason::kSpecInvalid,
                absl::StrCat(violations_[0].field, " ", violations_[0].description));
    for (const FieldViolation& v : violations_) error.Violation(v.field, v.description);
    return error.ToStatus();
  }

 private:
  std::vector<FieldViolation> violations_;
};

void ReadLora(const v1::JobSpec& in, spec::TrainSpec& out, Problems& problems) {
  const v1::LoraSpec& lora = in.lora();
  if (lora.has_r()) out.lora_r = lora.r();
  if (lora.has_alpha()) out.lora_alpha = lora.alpha();
  if (lora.has_dropout()) out.lora_dropout = lora.dropout();
  if (lora.has_use_rslora()) out.use_rslora = lora.use_rslora();
  out.target_modules.clear();
  for (int i = 0; i < lora.target_modules_size(); ++i) {
    auto module = spec::ModuleFromName(lora.target_modules(i));
    if (module.ok()) {
      out.target_modules.push_back(*module);
    } else {
      problems.Add(absl::StrCat("lora.target_modules[", i, "]"),
                   "is not one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, or of Phi's "
                   "qkv_proj, o_proj, gate_up_proj, down_proj");
    }
  }
  std::sort(out.target_modules.begin(), out.target_modules.end());
  out.target_modules.erase(std::unique(out.target_modules.begin(), out.target_modules.end()),
                           out.target_modules.end());
}

void ReadData(const v1::JobSpec& in, spec::TrainSpec& out, Problems& problems) {
  const v1::QuantizationSpec& quant = in.quantization();
  if (quant.has_type()) problems.Read("quantization.type", quant.type(), spec::kQuantWords, out.quant);
  if (quant.has_double_quant()) out.double_quant = quant.double_quant();
  const v1::DataSpec& data = in.data();
  if (data.has_format()) out.format = data.format();
  if (data.has_chat_template()) out.chat_template = data.chat_template();
  if (data.has_train_on_inputs()) out.train_on_inputs = data.train_on_inputs();
  out.sequence_len = -1;  // "choose for me"; only the model's own length says what fits
  if (data.has_sequence_len()) out.sequence_len = std::max(0, data.sequence_len());
  if (data.has_sample_packing()) out.sample_packing = data.sample_packing();
  if (data.has_excess_length_strategy()) {
    problems.Read("data.excess_length_strategy", data.excess_length_strategy(), spec::kExcessWords,
                  out.excess_length);
  }
  if (data.has_val_set_size()) out.val_set_size = data.val_set_size();
}

void ReadOptimizer(const v1::JobSpec& in, spec::TrainSpec& out, Problems& problems) {
  const v1::OptimizerSpec& optimizer = in.optimizer();
  if (optimizer.has_type()) {
    problems.Read("optimizer.type", optimizer.type(), spec::kOptimizerWords, out.optimizer);
  }
  if (optimizer.has_learning_rate()) out.learning_rate = optimizer.learning_rate();
  if (optimizer.has_lr_scheduler()) {
    problems.Read("optimizer.lr_scheduler", optimizer.lr_scheduler(), spec::kScheduleWords, out.lr_schedule);
  }
  if (optimizer.has_warmup_ratio()) out.warmup_ratio = optimizer.warmup_ratio();
  if (optimizer.has_warmup_steps()) out.warmup_steps = optimizer.warmup_steps();
  if (optimizer.has_weight_decay()) out.weight_decay = optimizer.weight_decay();
  if (optimizer.has_adam_beta1()) out.adam_beta1 = optimizer.adam_beta1();
  if (optimizer.has_adam_beta2()) out.adam_beta2 = optimizer.adam_beta2();
  if (optimizer.has_adam_epsilon()) out.adam_epsilon = optimizer.adam_epsilon();
  if (optimizer.has_max_grad_norm()) out.max_grad_norm = optimizer.max_grad_norm();
  if (optimizer.has_paged()) out.paged_optimizer = optimizer.paged();
}

// -1 means "not said" in a TrainSpec, and nothing else may.
double PerEpoch(double given) { return given == -1 ? -2 : given; }

void ReadTraining(const v1::JobSpec& in, spec::TrainSpec& out, Problems& problems) {
  const v1::TrainingSpec& training = in.training();
  if (training.has_micro_batch_size()) out.micro_batch_size = training.micro_batch_size();
  if (training.has_gradient_accumulation_steps()) {
    out.gradient_accumulation_steps = training.gradient_accumulation_steps();
  }
  if (training.has_num_epochs()) out.num_epochs = training.num_epochs();
  if (training.has_max_steps()) out.max_steps = training.max_steps();
  if (training.has_gradient_checkpointing()) {
    out.recompute = training.gradient_checkpointing() ? spec::Recompute::kFull : spec::Recompute::kNone;
  }
  if (training.has_base_cache()) {
    problems.Read("training.base_cache", training.base_cache(), spec::kBaseCacheWords, out.base_cache);
  }
  if (training.has_cuda_graphs()) {
    problems.Read("training.cuda_graphs", training.cuda_graphs(), spec::kGraphsWords, out.graphs);
  }
  if (training.has_recompute()) {
    problems.Read("training.recompute", training.recompute(), spec::kRecomputeWords, out.recompute);
  }
  if (training.has_keep_blocks()) out.keep_blocks = training.keep_blocks();
  if (training.has_offload_activations()) out.offload_activations = training.offload_activations();
  if (training.has_logging_steps()) out.logging_steps = training.logging_steps();
  if (training.has_eval_steps()) out.eval_steps = training.eval_steps();
  if (training.has_save_steps()) out.save_steps = training.save_steps();
  if (training.has_evals_per_epoch()) out.evals_per_epoch = PerEpoch(training.evals_per_epoch());
  if (training.has_saves_per_epoch()) out.saves_per_epoch = PerEpoch(training.saves_per_epoch());
  if (training.has_save_interval_seconds()) {
    out.save_interval_seconds = training.save_interval_seconds();
  }
  if (training.has_save_total_limit()) out.save_total_limit = training.save_total_limit();
  if (training.has_seed()) out.seed = training.seed();
  if (training.has_allow_numerics_change()) {
    out.allow_numerics_change = training.allow_numerics_change();
  }
}

void WriteOptimizer(const spec::TrainSpec& in, v1::OptimizerSpec* out) {
  out->set_type(std::string(WordOf(spec::kOptimizerWords, in.optimizer)));
  out->set_learning_rate(in.learning_rate);
  out->set_lr_scheduler(std::string(WordOf(spec::kScheduleWords, in.lr_schedule)));
  out->set_warmup_ratio(in.warmup_ratio);
  if (in.warmup_steps >= 0) out->set_warmup_steps(in.warmup_steps);
  out->set_weight_decay(in.weight_decay);
  out->set_adam_beta1(in.adam_beta1);
  out->set_adam_beta2(in.adam_beta2);
  out->set_adam_epsilon(in.adam_epsilon);
  out->set_max_grad_norm(in.max_grad_norm);
  out->set_paged(in.paged_optimizer);
}

void WriteTraining(const spec::TrainSpec& in, v1::TrainingSpec* out) {
  out->set_micro_batch_size(in.micro_batch_size);
  out->set_gradient_accumulation_steps(in.gradient_accumulation_steps);
  out->set_num_epochs(in.num_epochs);
  if (in.max_steps >= 0) out->set_max_steps(in.max_steps);
  out->set_recompute(std::string(WordOf(spec::kRecomputeWords, in.recompute)));
  out->set_keep_blocks(in.keep_blocks);
  out->set_offload_activations(in.offload_activations);
  out->set_base_cache(std::string(WordOf(spec::kBaseCacheWords, in.base_cache)));
  out->set_cuda_graphs(std::string(WordOf(spec::kGraphsWords, in.graphs)));
  out->set_gradient_checkpointing(in.recompute != spec::Recompute::kNone);
  out->set_logging_steps(in.logging_steps);
  if (in.eval_steps >= 0) out->set_eval_steps(in.eval_steps);
  if (in.save_steps >= 0) out->set_save_steps(in.save_steps);
  if (in.evals_per_epoch >= 0) out->set_evals_per_epoch(in.evals_per_epoch);
  if (in.saves_per_epoch >= 0) out->set_saves_per_epoch(in.saves_per_epoch);
  out->set_save_interval_seconds(in.save_interval_seconds);
  out->set_save_total_limit(in.save_total_limit);
  out->set_seed(in.seed);
  out->set_allow_numerics_change(in.allow_numerics_change);
}

}  // namespace

absl::StatusOr<spec::TrainSpec> ToTrainSpec(const v1::JobSpec& in) {
  spec::TrainSpec out;
  Problems problems;
  ReadLora(in, out, problems);
  ReadData(in, out, problems);
  ReadOptimizer(in, out, problems);
  ReadTraining(in, out, problems);
  if (absl::Status status = problems.ToStatus(); !status.ok()) return status;
  return out;
}

// What TrainSpec marks as "by the data" (-1) stays unset: it is known once the data has been read.
v1::JobSpec ToJobSpec(const spec::TrainSpec& in) {
  v1::JobSpec out;
  v1::LoraSpec* lora = out.mutable_lora();
  lora->set_r(in.lora_r);
  lora->set_alpha(in.lora_alpha);
  lora->set_dropout(in.lora_dropout);
  lora->set_use_rslora(in.use_rslora);
  for (const spec::Module module : in.target_modules) {
    lora->add_target_modules(std::string(spec::ModuleName(module)));
  }
  out.mutable_quantization()->set_type(std::string(WordOf(spec::kQuantWords, in.quant)));
  out.mutable_quantization()->set_double_quant(in.double_quant);
  v1::DataSpec* data = out.mutable_data();
  data->set_format(in.format);
  data->set_chat_template(in.chat_template);
  data->set_train_on_inputs(in.train_on_inputs);
  data->set_sequence_len(in.sequence_len);
  data->set_sample_packing(in.sample_packing);
  data->set_excess_length_strategy(std::string(WordOf(spec::kExcessWords, in.excess_length)));
  if (in.val_set_size >= 0) data->set_val_set_size(in.val_set_size);
  WriteOptimizer(in, out.mutable_optimizer());
  WriteTraining(in, out.mutable_training());
  return out;
}

}  // namespace nibble::server
