"""What the library `adapters` computes, as a third opinion: run once, in an environment of its own.

    python -m venv env && env/bin/pip install adapters==1.3.0 torch==2.13.0
    env/bin/python tests/golden/make.py

It needs transformers 4.57, so it shares nothing with the tests. For every architecture it writes one folder:
`base.safetensors` (a tiny model), `expected.safetensors` (inputs, and the output under each adapter),
`adapters.safetensors` (the tensors of all adapters, under the keys that `adapters` saves them under, and of the fusion
layers) and `config.json` (the model's shape, and the `adapter_config.json` that `adapters` writes for each adapter).
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import adapters
import torch
import transformers as hf
from adapters import CompacterConfig, CompacterPlusPlusConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from adapters.composition import Fuse
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE: dict[str, Any] = {
    "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "vocab_size": 23, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2,
    "max_position_embeddings": 16, "forced_eos_token_id": None,
} | IDS  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", SIZE),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config",
             {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16} | IDS),
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZE | IDS | {"num_key_value_heads": 1}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {
        "vocab_size": 23, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
        "decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}),
    "bart": ("BartForConditionalGeneration", "BartConfig", PAIR),
}  # fmt: skip
METHODS: dict[str, Any] = {
    "houlsby": DoubleSeqBnConfig(reduction_factor=4),
    "houlsby-cross": DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True, non_linearity="relu", leave_out=[0]),
    "houlsby-two": DoubleSeqBnConfig(reduction_factor=8, non_linearity="relu"),
    "pfeiffer": SeqBnConfig(reduction_factor=4),
    "pfeiffer-two": SeqBnConfig(reduction_factor=8, non_linearity="gelu"),
    "lin": SeqBnConfig(reduction_factor=4, ln_before=True),
    "parallel": ParBnConfig(reduction_factor=4),
    "parallel-learned": ParBnConfig(reduction_factor=2, scaling="learned"),
    "compacter": CompacterConfig(reduction_factor=4, phm_dim=2),
    "compacter-own": CompacterConfig(reduction_factor=4, phm_dim=4, shared_phm_rule=False, phm_rank=2),
    "compacter-plus": CompacterPlusPlusConfig(reduction_factor=4, phm_dim=2),
}
FUSED = {"fusion-pfeiffer": ("pfeiffer", "pfeiffer-two"), "fusion-houlsby": ("houlsby", "houlsby-two")}


def disturb(model: torch.nn.Module, key: str, scale: float) -> None:
    """Move tensors whose name holds `key` away from their start, by noise that their name decides."""
    with torch.no_grad():
        for i, (name, p) in enumerate(model.named_parameters()):
            if key in name:
                p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))


def inputs(arch: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 23, (2, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if arch in ("t5", "bart") else {})


def output(model: torch.nn.Module, arch: str) -> torch.Tensor:
    with torch.no_grad():
        made = model.eval()(**inputs(arch))
    return made.last_hidden_state if arch == "bert" else made.logits


def main() -> None:
    for arch, (model_name, config_name, options) in MODELS.items():
        folder = HERE / arch
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = getattr(hf, model_name)(getattr(hf, config_name)(**options, attn_implementation="eager"))
        disturb(model, "bias", 0.2)
        disturb(model, "", 0.1)
        save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, folder / "base.safetensors")
        expected, tensors, configs = {**inputs(arch), "none": output(model, arch)}, {}, {}
        adapters.init(model)
        for name, config in METHODS.items():
            model.add_adapter(name, config=config)
            disturb(model, f".{name}.", 0.3)
            model.set_active_adapters(name)
            expected[name] = output(model, arch)
            configs[name] = written(model, name, tensors)
        for name, of in FUSED.items():
            model.add_adapter_fusion(Fuse(*of), "dynamic")
            disturb(model, f".{','.join(of)}.", 0.1)
            model.set_active_adapters(Fuse(*of))
            expected[name] = output(model, arch)
            tensors |= parameters(model, f".{','.join(of)}.")
        save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
        save_file(tensors, folder / "adapters.safetensors")
        about = {"model": model_name, "config": config_name, "options": options, "adapters": configs}
        (folder / "config.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def written(model: Any, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What `adapters` saves: the tensors are added, the config is returned."""
    with TemporaryDirectory() as folder:
        if name == "lin":  # its writer of safetensors refuses it: the norm stands in two places of the module
            model.save_adapter(folder, name)
            tensors |= parameters(model, f".{name}.")
        else:
            model.save_adapter(folder, name, use_safetensors=True)
            tensors |= load_file(Path(folder) / "adapter.safetensors")
            # it leaves out a shared rule where the model has no name for its trunk (a bare BERT, T5)
            tensors |= parameters(model, f"shared_parameters.{name}.")
        return json.loads((Path(folder) / "adapter_config.json").read_text())


def parameters(model: Any, key: str) -> dict[str, torch.Tensor]:
    """The parameters whose name holds `key`, each once."""
    return {k: p.detach().contiguous() for k, p in model.named_parameters() if key in k}


if __name__ == "__main__":
    main()
