"""Tiny configs of the common families, for anatomy: how many sites of each role two blocks must have."""

from typing import Any

SIZE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OLD: dict[str, Any] = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | IDS
PAIR: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
} | IDS  # fmt: skip
FALCON: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | IDS
LLAMA: dict[str, Any] = SIZE | IDS | {"num_key_value_heads": 2}
HEADED: dict[str, Any] = LLAMA | {"head_dim": 8}

# name -> (model class, config class, config, sites: query, output, gate, up, down, norm, head, embedding)
ZOO: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig",
                   {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, (2, 2, 0, 2, 2, 5, 2, 1)),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", SIZE | {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, (2, 2, 0, 2, 2, 5, 2, 1)),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", SIZE | {"embedding_size": 16}, (1, 1, 0, 1, 1, 3, 1, 1)),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", SIZE | {"embedding_size": 16}, (2, 2, 0, 2, 2, 5, 2, 1)),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBertConfig",
                   SIZE | IDS | {"cls_token_id": 1, "sep_token_id": 2}, (2, 2, 2, 2, 2, 6, 3, 1)),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", SIZE, (2, 2, 0, 2, 2, 6, 1, 1)),
    "bert-bare": ("BertModel", "BertConfig", SIZE, (2, 2, 0, 2, 2, 5, 0, 1)),
    "gpt-neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {
        "vocab_size": 99, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]],
        "max_position_embeddings": 64} | IDS, (2, 2, 0, 2, 2, 5, 1, 1)),
    "gpt-j": ("GPTJForCausalLM", "GPTJConfig", OLD | {"rotary_dim": 4}, (2, 2, 0, 2, 2, 3, 1, 1)),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4} | IDS,
              (2, 2, 0, 2, 2, 6, 1, 1)),
    "falcon-multi-query": ("FalconForCausalLM", "FalconConfig", FALCON | {"multi_query": True}, (2, 2, 0, 2, 2, 3, 1, 1)),
    "falcon-multi-head": ("FalconForCausalLM", "FalconConfig", FALCON | {"multi_query": False}, (2, 2, 0, 2, 2, 3, 1, 1)),
    "falcon-grouped": ("FalconForCausalLM", "FalconConfig", FALCON | {
        "num_kv_heads": 2, "new_decoder_architecture": True}, (2, 2, 0, 2, 2, 5, 1, 1)),
    "opt": ("OPTForCausalLM", "OPTConfig", {
        "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32} | IDS, (2, 2, 0, 2, 2, 5, 1, 1)),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA, (2, 2, 2, 2, 2, 5, 1, 1)),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", LLAMA | {"num_local_experts": 3}, (2, 2, 0, 0, 0, 5, 1, 1)),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA, (2, 2, 2, 2, 2, 5, 1, 1)),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEADED, (2, 2, 2, 2, 2, 9, 1, 1)),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", HEADED, (2, 2, 2, 2, 2, 5, 1, 1)),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", HEADED, (2, 2, 2, 2, 2, 9, 1, 1)),
    "phi": ("PhiForCausalLM", "PhiConfig", SIZE | IDS, (2, 2, 0, 2, 2, 3, 1, 1)),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", SIZE | IDS | {"num_key_value_heads": 4}, (2, 2, 2, 2, 2, 5, 1, 1)),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 99, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
            (2, 2, 0, 2, 2, 5, 1, 1)),
    "bigcode-multi-query": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", OLD | {"multi_query": True}, (2, 2, 0, 2, 2, 5, 1, 1)),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", LLAMA, (2, 2, 0, 2, 2, 5, 1, 1)),
    "cohere": ("CohereForCausalLM", "CohereConfig", SIZE | IDS, (2, 2, 2, 2, 2, 3, 1, 1)),
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR | {"max_position_embeddings": 64}, (6, 6, 0, 4, 4, 12, 1, 2)),
    "bart-classifier": ("BartForSequenceClassification", "BartConfig", PAIR | {"max_position_embeddings": 64},
                        (6, 6, 0, 4, 4, 12, 2, 2)),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", {
        "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}, (6, 6, 4, 4, 4, 12, 1, 2)),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", PAIR | {
        "num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32}, (6, 6, 0, 4, 4, 12, 1, 1)),
    "vit": ("ViTForImageClassification", "ViTConfig", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
        "patch_size": 4}, (2, 2, 0, 2, 2, 5, 1, 0)),
    "clip-text": ("CLIPTextModel", "CLIPTextConfig", SIZE, (2, 2, 0, 2, 2, 5, 0, 1)),
}  # fmt: skip
# fused layouts that neither the table nor the model's behavior settles: refused, with the way out
REFUSED = {
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", OLD | {"rotary_dim": 4}),
    "bigcode-multi-head": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", OLD | {"multi_query": False}),
}


def build(model: str, config: str, options: dict[str, Any]) -> Any:
    import transformers as hf

    return getattr(hf, model)(getattr(hf, config)(**options))
