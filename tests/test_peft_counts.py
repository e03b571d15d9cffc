"""As many parameters train as with peft, for every method that both have, on tiny models."""

from typing import Any

import peft
import pytest
from support.models import tiny

import featherweight as fw
from featherweight.checkpoint.peft.table import CODECS

QV = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "t5": ["q", "v"], "bart": ["q_proj", "v_proj"]}
KV = {
    "bert": (["key", "value"], ["layer.0.output.dense", "layer.1.output.dense"]),
    "llama": (["k_proj", "v_proj"], ["down_proj"]),
    "t5": (["k", "v"], ["wo"]),
}
NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "t5": ["layer_norm", "final_layer_norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "bert": ["LayerNorm"],
}
TASK = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}
DECODER = ("t5", "bart")

CASES: list[tuple[str, Any, Any]] = [
    *((a, fw.LoRA(rank=3), peft.LoraConfig(r=3, target_modules=m)) for a, m in QV.items()),
    *((a, fw.DoRA(rank=3), peft.LoraConfig(r=3, target_modules=m, use_dora=True)) for a, m in QV.items()),
    *(
        (a, fw.AdaLoRA(rank=3, target_rank=2, targets=("query", "value")),
         peft.AdaLoraConfig(init_r=3, target_r=2, tinit=1, tfinal=1, total_step=10, target_modules=m))
        for a, m in QV.items()
    ),
    *((a, fw.VeRA(rank=5), peft.VeraConfig(r=5, target_modules=m)) for a, m in QV.items()),
    *((a, fw.IA3(), peft.IA3Config(target_modules=kv + f, feedforward_modules=f)) for a, (kv, f) in KV.items()),
    *((a, fw.LayerNorm(), peft.LNTuningConfig(target_modules=m)) for a, m in NORMS.items()),
    *(
        (a, fw.Prompt(tokens=5, decoder=a in DECODER), peft.PromptTuningConfig(num_virtual_tokens=5, task_type=t))
        for a, t in TASK.items()
    ),
    *(
        (a, fw.PTuning(template=(5, 0, 0)), peft.PromptEncoderConfig(
            num_virtual_tokens=5, task_type=TASK[a], encoder_reparameterization_type="LSTM", encoder_hidden_size=16))
        for a in ("llama", "gpt2")
    ),
    *(
        (a, fw.Prefix(tokens=5, hidden=0), peft.PrefixTuningConfig(num_virtual_tokens=5, task_type=TASK[a]))
        for a in ("llama", "gpt2")
    ),
    *(
        (a, fw.Prefix(tokens=5, hidden=6), peft.PrefixTuningConfig(
            num_virtual_tokens=5, task_type=TASK[a], prefix_projection=True, encoder_hidden_size=6))
        for a in ("gpt2",)
    ),
    ("llama", fw.LlamaAdapter(tokens=4, layers=2),
     peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM")),
    *((a, fw.Tokens(tokens=(3, 5)), peft.TrainableTokensConfig(token_indices=[3, 5])) for a in ("llama", "bert")),
    *((a, fw.SHiRA(rank=2, targets=m), peft.ShiraConfig(r=2, target_modules=m)) for a, m in QV.items()),
    ("mixtral", fw.ExpertLoRA(rank=2), peft.LoraConfig(
        r=2, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("arch", "method", "config"), CASES, ids=[f"{a}-{m!r}" for a, m, _ in CASES])
def test_as_many_as_peft(arch: str, method: Any, config: Any) -> None:
    theirs = peft.get_peft_model(tiny(arch), config).get_nb_trainable_parameters()[0]
    assert fw.trainable(fw.attach(tiny(arch), method, head=False)).trainable == theirs


def test_no_shared_method_is_left_out() -> None:
    assert {type(m) for _, m, _ in CASES} == set(CODECS) - {fw.DeepPrompt}, "deep prompts are peft's prefixes"
