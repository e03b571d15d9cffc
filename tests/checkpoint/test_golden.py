"""The golden manifest: counts of tensors and parameters, and the names and shapes that peft gives the same adapter."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import featherweight as fw
from featherweight.core.count import trainable

pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning")


def base(arch: str) -> Any:
    import transformers as hf

    size: Any = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
    if arch == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**size, num_key_value_heads=2))
    if arch == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if arch == "bert":
        return hf.BertForSequenceClassification(hf.BertConfig(**size | {"max_position_embeddings": 512}, num_labels=3))
    return hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )


def test_the_bases_are_those_of_the_manifest() -> None:
    sizes = {arch: sum(p.numel() for p in base(arch).parameters()) for arch in ("llama", "gpt2", "bert", "t5")}
    assert sizes == {"llama": 19_616, "gpt2": 29_568, "bert": 34_723, "t5": 39_552}


ROWS: dict[str, Any] = {
    "lora-qv-llama": ("llama", fw.LoRA(rank=8), "LORA", {"r": 8, "target_modules": ["q_proj", "v_proj"]}, 8, 1_792),
    "lora-all-linear": ("llama", fw.LoRA(rank=4, targets="linear"), "LORA",
                        {"r": 4, "target_modules": "all-linear"}, 28, 3_712),
    "lora-rs-pattern": ("llama", fw.LoRA(rank=4, rank_stabilized=True, rank_pattern={"0.self_attn.q_proj": 2}), "LORA",
                        {"r": 4, "use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 2},
                         "target_modules": ["q_proj", "v_proj"]}, 8, 768),
    "lora-c_attn-gpt2": ("gpt2", fw.LoRA(rank=4, targets="c_attn"), "LORA",
                         {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}, 4, 1_024),
    "lora-embed-q-llama": ("llama", fw.LoRA(rank=4, targets=("q_proj", "embed_tokens")), "LORA",
                           {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}, 6, 896),
    "ia3-llama": ("llama", fw.IA3(), "IA3", {"target_modules": ["k_proj", "v_proj", "down_proj"],
                                             "feedforward_modules": ["down_proj"]}, 6, 160),
    "ia3-t5": ("t5", fw.IA3(), "IA3", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}, 16, 576),
    "ia3-bert": ("bert", fw.IA3(feedforward="output.dense"), "IA3",
                 {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"],
                  "task_type": "SEQ_CLS"}, 10, 387),
    "norm-llama": ("llama", fw.LayerNorm(), "LN_TUNING",
                   {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]}, 5, 160),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_names_shapes_and_counts(row: str, tmp_path: Path) -> None:
    from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model, get_peft_model_state_dict

    arch, method, kind, fields, tensors, parameters = ROWS[row]
    model = fw.attach(base(arch), method)
    fw.save(model, tmp_path)
    ours = {k: tuple(t.shape) for k, t in load_file(tmp_path / "adapter_model.safetensors").items()}
    config = {"LORA": LoraConfig, "IA3": IA3Config, "LN_TUNING": LNTuningConfig}[kind](**fields)
    theirs = get_peft_model_state_dict(get_peft_model(base(arch), config), save_embedding_layers=False)
    assert ours == {k: tuple(t.shape) for k, t in theirs.items()}
    assert (len(ours), trainable(model).trainable) == (tensors, parameters)
