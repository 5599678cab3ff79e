// A recipe with something else than the default in every field that can stand beside the others; for tests
// that what goes through formats comes back.
#pragma once

#include "engine/spec/train_spec.h"

namespace nibble::spec {

inline TrainSpec NoDefaults() {
  TrainSpec s;
  s.lora_r = 8;
  s.lora_alpha = 20.5;
  s.lora_dropout = 0.125;
  s.target_modules = {Module::kQ, Module::kDown};
  s.use_rslora = true;
  s.quant = QuantKind::kINT8;
  s.double_quant = false;
  s.chat_template = "chatml";
  s.train_on_inputs = true;
  s.sequence_len = 300;
  s.sample_packing = false;
  s.excess_length = ExcessLength::kTruncate;
  s.val_set_size = 0.1;
  s.optimizer = OptimizerKind::kAdamW8bit;
  s.paged_optimizer = true;
  s.offload_activations = true;
  s.learning_rate = 1.2345678e-4;
  s.lr_schedule = LrSchedule::kConstant;
  s.warmup_steps = 7;
  s.weight_decay = 0.01;
  s.adam_beta1 = 0.85;
  s.adam_beta2 = 0.99;
  s.adam_epsilon = 1e-6;
  s.max_grad_norm = 0.3;
  s.micro_batch_size = 3;
  s.gradient_accumulation_steps = 5;
  s.num_epochs = 2.5;
  s.max_steps = 11;
  s.graphs = Graphs::kOn;
  s.logging_steps = 2;
  s.eval_steps = 4;
  s.save_steps = 6;
  s.save_interval_seconds = 60;
  s.save_total_limit = 2;
  s.seed = 7;
  s.allow_numerics_change = true;
  return s;
}

}  // namespace nibble::spec
