#include "client/recipe_keys.h"

#include <algorithm>
#include <map>

namespace nibble::client {
namespace {

constexpr auto kText = KeyAction::kText;
constexpr auto kInteger = KeyAction::kInteger;
constexpr auto kNumber = KeyAction::kNumber;
constexpr auto kFlag = KeyAction::kFlag;
constexpr auto kInverseFlag = KeyAction::kInverseFlag;
constexpr auto kSpecial = KeyAction::kSpecial;
constexpr auto kIgnored = KeyAction::kIgnored;
constexpr auto kMustBe = KeyAction::kMustBe;
constexpr auto kRefused = KeyAction::kRefused;

// clang-format off
const KeyRule kRules[] = {
    // The model and what trains on it.
    {"base_model", "model_name_or_path model_name", kSpecial, "base_model", ""},
    {"revision_of_model", "revision model_revision", kSpecial, "", ""},
    {"adapter", "", kSpecial, "", ""},
    {"finetuning_type", "", kMustBe, "lora", "only LoRA on a frozen base is trained"},
    {"use_peft", "", kMustBe, "true|True", "only LoRA on a frozen base is trained"},
    {"stage", "", kMustBe, "sft", "only supervised fine-tuning is supported"},
    {"task_type", "lora_task_type", kMustBe, "CAUSAL_LM", "only causal language models are trained"},
    {"bias", "lora_bias", kMustBe, "none", "biases are frozen"},
    {"load_in_4bit", "", kSpecial, "", ""},
    {"quantization_bit", "", kSpecial, "", ""},
    {"quantization_method", "quant_method", kMustBe, "bnb|bitsandbytes", ""},
    {"bnb_4bit_quant_type", "quantization_type", kText, "quantization.type", ""},
    {"bnb_4bit_use_double_quant", "double_quantization use_bnb_nested_quant", kFlag,
     "quantization.doubleQuant", ""},
    {"lora_r", "lora_rank r", kInteger, "lora.r", ""},
    {"lora_alpha", "", kNumber, "lora.alpha", ""},
    {"lora_dropout", "", kNumber, "lora.dropout", ""},
    {"lora_target_linear", "", kSpecial, "", ""},
    {"lora_target_modules", "lora_target target_modules", kSpecial, "lora.targetModules", ""},
    {"peft_use_rslora", "use_rslora", kFlag, "lora.useRslora", ""},
    // Data.
    {"datasets", "dataset dataset_name", kSpecial, "dataset", ""},
    {"test_datasets", "eval_dataset eval_datasets", kSpecial, "evalDataset", ""},
    {"val_set_size", "val_size", kNumber, "data.valSetSize", ""},
    {"chat_template", "template", kText, "data.chatTemplate", ""},
    {"train_on_inputs", "train_on_prompt", kFlag, "data.trainOnInputs", ""},
    {"completion_only_loss", "", kMustBe, "true|True", "answers are what is trained on; "
     "train_on_inputs: true trains on everything"},
    {"assistant_only_loss", "", kMustBe, "true|True", "answers are what is trained on; "
     "train_on_inputs: true trains on everything"},
    {"loss_type", "", kMustBe, "nll", "the loss is cross-entropy"},
    {"dataset_train_split", "", kMustBe, "train", "give the file with the rows wanted in datasets"},
    {"dataset_text_field", "", kMustBe, "text", "rename the field to text"},
    {"packing_strategy", "", kMustBe, "bfd|ffd", "rows are packed whole"},
    {"roles_to_train", "", kMustBe, "assistant", "answers are what is trained on"},
    {"train_on_eos", "", kMustBe, "turn", "the end of every answer is trained on, and no other"},
    {"sequence_len", "cutoff_len max_length max_seq_length max_seq_len", kInteger,
     "data.sequenceLen", ""},
    {"sample_packing", "packing", kFlag, "data.samplePacking", ""},
    {"excess_length_strategy", "", kText, "data.excessLengthStrategy", ""},
    // Optimizer.
    {"learning_rate", "lr", kNumber, "optimizer.learningRate", ""},
    {"optimizer", "optim", kSpecial, "", ""},
    {"paged_optimizer", "", kFlag, "optimizer.paged", ""},
    {"lr_scheduler", "lr_scheduler_type", kSpecial, "optimizer.lrScheduler", ""},
    {"warmup_ratio", "", kNumber, "optimizer.warmupRatio", ""},
    {"warmup_steps", "", kInteger, "optimizer.warmupSteps", ""},
    {"weight_decay", "", kNumber, "optimizer.weightDecay", ""},
    {"adam_beta1", "", kNumber, "optimizer.adamBeta1", ""},
    {"adam_beta2", "", kNumber, "optimizer.adamBeta2", ""},
    {"adam_epsilon", "", kNumber, "optimizer.adamEpsilon", ""},
    {"max_grad_norm", "gradient_clipping", kNumber, "optimizer.maxGradNorm", ""},
    // The loop.
    {"micro_batch_size", "per_device_train_batch_size", kInteger, "training.microBatchSize", ""},
    {"gradient_accumulation_steps", "", kInteger, "training.gradientAccumulationSteps", ""},
    {"num_epochs", "num_train_epochs", kNumber, "training.numEpochs", ""},
    {"max_steps", "", kSpecial, "training.maxSteps", ""},
    {"gradient_checkpointing", "use_gradient_checkpointing", kFlag, "training.gradientCheckpointing", ""},
    {"activation_offloading", "offload_activations", kFlag, "training.offloadActivations", ""},
    {"recompute", "", kText, "training.recompute", ""},
    {"keep_blocks", "", kInteger, "training.keepBlocks", ""},
    {"base_cache", "", kText, "training.baseCache", ""},
    {"cuda_graphs", "", kText, "training.cudaGraphs", ""},
    {"disable_gradient_checkpointing", "", kInverseFlag, "training.gradientCheckpointing", ""},
    {"logging_steps", "", kInteger, "training.loggingSteps", ""},
    {"eval_steps", "", kInteger, "training.evalSteps", ""},
    {"save_steps", "", kInteger, "training.saveSteps", ""},
    {"evals_per_epoch", "", kNumber, "training.evalsPerEpoch", ""},
    {"saves_per_epoch", "", kNumber, "training.savesPerEpoch", ""},
    {"save_total_limit", "", kInteger, "training.saveTotalLimit", ""},
    {"seed", "", kInteger, "training.seed", ""},
    // No effect on the result.
    {"wandb_*", "use_wandb", kIgnored, "", "nothing is sent elsewhere; see nibble metrics and "
     "/metrics"},
    {"mlflow_*", "use_mlflow", kIgnored, "", "nothing is sent elsewhere; see nibble metrics and "
     "/metrics"},
    {"comet_*", "use_comet", kIgnored, "", "nothing is sent elsewhere; see nibble metrics and "
     "/metrics"},
    {"swanlab_*", "use_swanlab use_tensorboard", kIgnored, "",
     "nothing is sent elsewhere; see nibble metrics and /metrics"},
    {"report_to", "run_name project trackio_space_id logging_dir logging_first_step logging_nan_inf_filter "
     "log_level log_level_replica log_on_each_node disable_tqdm print_param_status use_otel_metrics",
     kIgnored, "", "nothing is sent elsewhere; see nibble metrics and "
     "/metrics"},
    {"hub_*", "push_to_hub push_dataset_to_hub hf_use_auth_token use_auth_token hf_token token",
     kIgnored, "",
     "nothing is pushed; nibble download hands out the adapter"},
    {"output_dir", "", kIgnored, "", "use nibble download JOB -o DIR"},
    {"dataset_prepared_path", "overwrite_cache cache_dir tokenized_path", kIgnored, "",
     "the worker keeps its own caches"},
    {"dataset_processes", "dataset_num_proc preprocessing_num_workers dataset_keep_in_memory "
     "dataset_batch_size preprocessing_batch_size",
     kIgnored, "", "the worker decides"},
    {"dataloader_*", "remove_unused_columns", kIgnored, "", "the engine reads the data itself"},
    {"attn_implementation", "attention", kIgnored, "", "the engine has one attention"},
    {"flash_attention", "flash_attn flash_attn_* sdp_attention xformers_attention "
     "eager_attention", kIgnored, "", "the engine has one attention"},
    {"liger_*", "enable_liger_kernel use_liger_kernel use_liger cut_cross_entropy", kIgnored, "",
     "the engine has its own kernels"},
    {"lora_mlp_kernel", "lora_qkv_kernel lora_o_kernel lora_embedding_kernel unsloth_* "
     "use_unsloth use_unsloth_gc", kIgnored,
     "", "the engine has its own kernels"},
    {"plugins", "", kSpecial, "", ""},
    {"torch_compile", "torch_compile_* torchdynamo", kIgnored, "",
     "there is no torch in the engine"},
    {"bf16", "bfloat16 pure_bf16 dtype torch_dtype compute_dtype bnb_4bit_compute_dtype "
     "bnb_4bit_quant_storage", kIgnored, "auto|true|full|bfloat16", "the engine's number formats follow its "
     "backend"},
    {"tf32", "", kIgnored, "", "the engine's number formats follow its backend"},
    {"fp16", "float16", kRefused, "", "remove it: a GPU below compute capability 8.0 "
     "computes in fp16 by itself, with loss scaling; every other device in bf16"},
    {"ddp_*", "ddp local_rank gc_steps", kIgnored, "", "one job trains on one device"},
    {"strict", "debug", kIgnored, "true|false", "recipes are always read strictly"},
    {"gradient_checkpointing_kwargs", "", kIgnored, "",
     "the memory plan decides"},
    {"pad_to_sequence_len", "eval_sample_packing eval_batch_size per_device_eval_batch_size "
     "eval_table_size eval_max_new_tokens eval_causal_lm_metrics eval_packing eval_accumulation_steps "
     "eval_delay eval_on_start eval_on_each_dataset prediction_loss_only bf16_full_eval fp16_full_eval "
     "do_causal_lm_eval compute_accuracy predict_with_generate pad_to_multiple_of "
     "ignore_pad_token_for_loss", kIgnored, "",
     "padding and evaluation are the engine's"},
    {"sample_packing_group_size", "sample_packing_bin_size sample_packing_eff_est neat_packing padding_free "
     "batch_flattening multipack_real_batches", kIgnored, "",
     "packing is the engine's, and rows that share a sequence do not see one another"},
    {"eval_strategy", "evaluation_strategy save_strategy logging_strategy do_train do_eval do_predict",
     kIgnored, "", "use eval_steps and save_steps"},
    {"auto_resume_from_checkpoints", "overwrite_output_dir save_only_model save_safetensors "
     "save_first_step", kIgnored, "", "jobs always resume from their last checkpoint"},
    {"loss_watchdog_threshold", "loss_watchdog_patience", kIgnored, "",
     "a loss that is not finite stops the job; see nibble metrics"},
    {"model_type", "tokenizer_type is_llama_derived_model is_mistral_derived_model "
     "is_qwen_derived_model is_falcon_derived_model tokenizer_use_fast tokenizer_legacy "
     "tokenizer_use_mistral_common base_model_config "
     "base_model_ignore_patterns", kIgnored, "", "read from the model's own files"},
    {"trust_remote_code", "trust_remote_code_*", kIgnored, "false",
     "no code of a model is ever run"},
    {"low_cpu_mem_usage", "lora_on_cpu device_map max_memory quantization_device_map gpu_memory_limit "
     "gpu_memory_utilization torch_empty_cache_steps skip_memory_metrics", kIgnored, "",
     "the memory plan decides"},
    {"use_cpu", "no_cuda use_mps_device device world_size accelerator_config half_precision_backend "
     "fp16_opt_level full_determinism average_tokens_across_devices", kIgnored, "",
     "the server chooses the device, and its results are the same each time"},
    {"include_tokens_per_second", "include_tkps include_num_input_tokens_seen plot_loss "
     "profiler_steps use_ray_* ray_*", kIgnored, "", "shown by nibble watch"},
    {"dataset_dir", "media_dir", kIgnored, "", "give the path in datasets"},
    {"dataset_test_split", "", kIgnored, "", "rows are held out by val_set_size or test_datasets"},
    {"shuffle_dataset", "", kIgnored, "true", "rows are always shuffled, by seed"},
    {"special_tokens", "eot_tokens pad_token", kIgnored, "", "they are those of the tokenizer's files; where "
     "yours are others, change its tokenizer_config.json"},
    {"resize_token_embeddings_to_32x", "shrink_embeddings", kIgnored, "", "embeddings are frozen"},
    {"shuffle_merged_datasets", "", kMustBe, "true", "rows are always shuffled, by seed"},
    // Would change the result.
    {"load_in_8bit", "load_in_16bit", kRefused, "", "use adapter: qlora (4 bit) or adapter: lora (16 bit)"},
    {"gptq", "gptq_* awq bnb_config_kwargs quantize_moe_experts", kRefused, "",
     "the base is quantized by the engine; use adapter: qlora"},
    {"rl", "rl_beta dpo_* kto_* orpo_* trl rewards reward_model process_reward_model simpo_gamma "
     "pref_beta pref_loss ref_model", kRefused, "", "only supervised fine-tuning is supported"},
    {"fsdp", "fsdp_* deepspeed tensor_parallel_size context_parallel_size "
     "sequence_parallel_degree dp_shard_size dp_replicate_size pipeline_parallel_size "
     "expert_parallel_size", kRefused, "", "one job trains on one device"},
    {"processor_type", "image_size image_resize_algorithm is_multimodal freeze_vision_tower",
     kRefused, "", "only text models are supported"},
    {"lora_target_parameters", "", kRefused, "", "use lora_target_modules with linear layers"},
    {"lora_modules_to_save", "modules_to_save additional_target", kRefused, "",
     "only LoRA matrices are trained"},
    {"peft_use_dora", "use_dora", kRefused, "", "plain LoRA and rsLoRA are supported"},
    {"peft_init_lora_weights", "init_lora_weights pissa_init loftq_config peft", kRefused, "",
     "PEFT's default initialization is used"},
    {"peft_layers_to_transform", "peft_layers_pattern layers_to_transform lora_layers_to_transform",
     kRefused, "", "all layers are trained; choose by module with lora_target_modules"},
    {"peft_autocast_adapter_dtype", "lora_fan_in_fan_out", kRefused, "", ""},
    {"loraplus_lr_ratio", "loraplus_* lr_groups embedding_lr embedding_lr_scale", kRefused, "",
     "all LoRA matrices share one learning rate"},
    {"relora_*", "relora lisa_* llmcompressor qat galore_* use_galore use_badam badam_* apollo_* "
     "use_apollo", kRefused, "", "use plain QLoRA"},
    {"unfrozen_parameters", "freeze_* train_layers full_finetuning", kRefused, "", "the base is frozen"},
    {"neftune_noise_alpha", "noisy_embedding_alpha label_smoothing_factor", kRefused, "", ""},
    {"overrides_of_model_config", "overrides_of_model_kwargs model_kwargs model_init_kwargs rope_scaling "
     "rope_theta", kRefused, "", "edit the model's config.json instead"},
    {"s2_attention", "shift_attn", kRefused, "", "every token attends to all before it in its row"},
    {"tokens", "added_tokens_overrides add_tokens add_special_tokens new_special_tokens "
     "resize_vocab tokenizer_config tokenizer_save_jinja_files", kRefused, "",
     "the vocabulary is the model's"},
    {"eos_token", "", kRefused, "", "set eos_token in the model's tokenizer_config.json"},
    {"default_system_message", "default_system system_prompt system_message", kRefused, "",
     "put it into the rows, as a message of the role system"},
    {"enable_thinking", "tool_format", kRefused, "", "the chat template is used as it is"},
    {"chat_template_jinja", "chat_template_path", kRefused, "", "put the template into the model's "
     "tokenizer_config.json"},
    {"group_by_length", "curriculum_sampling sampling_strategy sample_packing_sequentially disable_shuffling",
     kRefused, "",
     "rows are shuffled by seed"},
    {"batch_size", "train_batch_size auto_find_batch_size", kRefused, "",
     "use micro_batch_size and gradient_accumulation_steps"},
    {"early_stopping_patience", "early_stopping load_best_model_at_end metric_for_best_model "
     "greater_is_better", kRefused, "", "watch the held-out loss and use max_steps"},
    {"optim_args", "optim_target_modules adam_beta3 adam_epsilon2 optimizer_kwargs", kRefused, "",
     "use adam_beta1, adam_beta2, adam_epsilon"},
    {"lr_scheduler_kwargs", "cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor "
     "lr_quadratic_warmup jagged_restart_*", kRefused, "", "cosine, linear and constant fall to "
     "zero or not at all"},
    {"resume_from_checkpoint", "lora_model_dir adapter_name_or_path create_new_adapter", kRefused, "",
     "training starts from a fresh adapter; interrupted jobs resume by themselves"},
    {"max_samples", "streaming dataset_streaming buffer_size interleave_probs mix_strategy mask_history "
     "dataset_config dataset_shard_num dataset_shard_idx dataset_exact_deduplication min_sample_len",
     kRefused, "", "cut the data file instead"},
    {"pretraining_dataset", "pretrain_*", kRefused, "", "use datasets with rows of text"},
    {"data_seed", "random_state", kRefused, "",
     "seed decides the order of rows and the initial adapter, too"},
    {"diffusion", "diffusion_* mixture_of_depths kd_* kd_trainer use_kd expert_*", kRefused, "",
     ""},
    // Ours.
    {"nibble", "", kSpecial, "", ""},
};
// clang-format on

std::vector<std::string_view> Split(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (end > 0) words.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

bool Matches(std::string_view pattern, std::string_view key) {
  if (!pattern.empty() && pattern.back() == '*') {
    pattern.remove_suffix(1);
    return key.substr(0, pattern.size()) == pattern;
  }
  return pattern == key;
}

// Optimal string alignment distance: one for an insertion, deletion, change or swap of neighbours.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

const std::vector<KeyRule>& KeyRules() {
  static const auto* rules = new std::vector<KeyRule>(std::begin(kRules), std::end(kRules));
  return *rules;
}

const KeyRule* FindKeyRule(std::string_view key) {
  // Exact names first: a family such as dpo_* must not shadow a key that has a rule of its own.
  for (const bool exact : {true, false}) {
    for (const KeyRule& rule : KeyRules()) {
      std::vector<std::string_view> names = Split(rule.aliases);
      names.push_back(rule.key);
      for (std::string_view name : names) {
        if (exact ? name == key : Matches(name, key)) return &rule;
      }
    }
  }
  return nullptr;
}

std::string ClosestKey(std::string_view key, const std::vector<std::string_view>& known) {
  if (key.size() < 2 || key.size() > 64) return "";  // any other letter is one edit away
  std::string_view best;
  size_t best_distance = std::max<size_t>(1, key.size() / 3) + 1;
  for (std::string_view candidate : known) {
    const size_t distance = EditDistance(key, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return std::string(best);
}

std::vector<std::string_view> KnownKeys() {
  std::vector<std::string_view> names;
  for (const KeyRule& rule : KeyRules()) {
    for (std::string_view name : Split(rule.aliases)) names.push_back(name);
    names.push_back(rule.key);
  }
  std::erase_if(names, [](std::string_view n) { return n.back() == '*'; });
  return names;
}

}  // namespace nibble::client
