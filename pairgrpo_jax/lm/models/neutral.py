"""Fields of a `config.json` that change nothing here: what tools note, and switches that are off."""

from typing import Any

_NAMES = frozenset(
    # Names and dates, defaults for other tasks, weight initialisation, dropout (models run as at evaluation).
    """architectures model_type transformers_version dtype torch_dtype use_cache return_dict
    output_hidden_states output_attentions chunk_size_feed_forward id2label label2id problem_type
    initializer_range _name_or_path name_or_path attention_dropout resid_pdrop embd_pdrop attn_pdrop
    hidden_dropout attn_dropout_prob emb_dropout_prob classifier_dropout layerdrop label_smoothing
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    task_specific_params n_ctx gradient_checkpointing torchscript is_llama_config transformers.js_config
    reorder_and_upcast_attn pretraining_tp is_decoder finetuning_task tf_legacy_loss use_bfloat16 _commit_hash
    tokenizer_class processor_class bf16 fp16 fp32 onnx neftune_noise_alpha router_aux_loss_coef
    seq_length max_sequence_length model_max_length n_special predict_special_tokens output_past _num_labels
    """
    # How attention is computed, not what.
    """_attn_implementation attn_implementation _attn_implementation_internal _attn_implementation_autoset
    _experts_implementation cache_implementation _flash_attn_2_enabled use_flash_attention use_flash_attention_2
    use_flash_attn flash_attention softmax_in_fp32 use_cache_quantization use_cache_kernel
    """
    # Options of generation in old files, no part of the model: arguments here, or not applied.
    """max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id prefix
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    decoder_start_token_id sep_token_id cls_token_id unk_token_id
    """
    # Ids that only stand for images, sounds and videos.
    """image_token_id image_token_index video_token_id audio_token_id vision_token_id vision_start_token_id
    vision_end_token_id boi_token_id boi_token_index eoi_token_id eoi_token_index""".split()
)
# Notes of Unsloth, Axolotl, LLaMA-Factory, TRL, mergekit and Optimum.
_PREFIXES = ("unsloth_", "axolotl_", "llamafactory_", "llama_factory_", "trl_", "mergekit_", "wandb_", "neuron_")
_OFF = (False, 0, "", [], {})  # 0.0 is 0
_ONE = (1, *_OFF)
_SWITCHES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        """is_encoder_decoder rope_interleaved add_cross_attention use_bidirectional_attention tie_encoder_decoder
        use_mrope use_sliding_window use_dual_chunk_attention dual_chunk_attention_config use_logn_attn
        use_dynamic_ntk use_moe moe num_experts num_local_experts num_experts_per_tok n_routed_experts
        output_router_logits num_nextn_predict_layers mtp_num_layers use_mtp use_alibi alibi parallel_attn
        use_parallel_residual lm_head_bias scale_embeddings cross_attention_layers pruned_heads
        prefix_lm use_value_residual use_lora attention_sink attention_sinks use_attention_sinks logit_cap
        auto_map quantization_config""".split(),
        _OFF,
    ),
    # Factors of Granite and its kind.
    **dict.fromkeys("embedding_multiplier residual_multiplier logits_scaling logit_scale".split(), _ONE),
}


def is_neutral(name: str, value: Any) -> bool:
    """Whether a field that no family reads changes nothing: it is null, off, or somebody's note."""
    if value is None or name in _NAMES or name.startswith(_PREFIXES):
        return True
    if name == "quantization_config" and value and isinstance(value, dict):
        return _is_left_over(value)
    return name in _SWITCHES and value in _SWITCHES[name]


def _is_left_over(quantization: dict[str, Any]) -> bool:
    """Whether it asks bitsandbytes to quantise while loading; weights that are stored so have dtypes of their own."""
    method = quantization.get("quant_method", "bitsandbytes" if "load_in_4bit" in quantization else "")
    return method == "bitsandbytes"
