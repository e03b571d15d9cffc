"""Every trainable count that the papers print and the architectures determine, on models without storage.

A mark says how the printed figure compares with the exact one: "=" the exact count rounds to it, "!" it does not, and
the exact one stands.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers

import featherweight as fw
from featherweight.core.count import Trainable
from featherweight.core.method import Method

SHAPES = {
    "bert-base": ("BertModel", {}),
    "bert-base-cased": ("BertModel", {"vocab_size": 28996}),
    "bert-large": (
        "BertModel",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "bert-base-cased-pretraining": ("BertForPreTraining", {"vocab_size": 28996}),
    "roberta-base": ("RobertaModel", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-base-mnli": (
        "RobertaForSequenceClassification",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "num_labels": 3},
    ),
    "gpt2-medium": ("GPT2Model", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("GPT2Model", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("GPT2Model", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gpt3-175b": ("GPT2Model", {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048}),
    "bloomz-7b1": ("BloomModel", {"hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}),
}
SHAPES["roberta-large"] = ("RobertaModel", SHAPES["roberta-base"][1] | SHAPES["bert-large"][1])
SHAPES["bert-large-cased"] = ("BertModel", SHAPES["bert-large"][1] | {"vocab_size": 28996})
SHAPES["deberta-v2-xxl"] = (
    "DebertaV2Model",
    {
        "hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "intermediate_size": 6144,
        "vocab_size": 128100, "type_vocab_size": 0, "relative_attention": True, "max_relative_positions": -1,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": False, "layer_norm_eps": 1e-7,
    },
)  # fmt: skip
LLAMA = {"vocab_size": 32000, "max_position_embeddings": 2048}
SHAPES["llama-7b"] = (
    "LlamaForCausalLM",
    LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
)
SHAPES["llama-65b"] = (
    "LlamaForCausalLM",
    LLAMA | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 22016},
)


def t5(layers: int, d: int, f: int, heads: int, vocab: int = 32128, cls: str = "T5") -> tuple[str, dict]:
    """T5 v1.1: gated GELU, untied LM head, keys 64 wide."""
    shape = {
        "d_model": d,
        "d_ff": f,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_kv": 64,
    }
    return f"{cls}ForConditionalGeneration", shape | {"vocab_size": vocab, "feed_forward_proj": "gated-gelu"}


SHAPES |= {
    "t5-80m": t5(8, 512, 1024, 6),
    "t5-250m": t5(12, 768, 2048, 12),
    "t5-780m": t5(24, 1024, 2816, 16),
    "t0-3b": t5(24, 2048, 5120, 32),
    "t0": t5(24, 4096, 10240, 64),
    "mt0-large": t5(24, 1024, 2816, 16, 250112, "MT5"),
    "mt0-xxl": t5(24, 4096, 10240, 64, 250112, "MT5"),
}


@cache
def build(name: str) -> torch.nn.Module:
    """The architecture without storage; the T5 family with the untied head of its checkpoints."""
    cls, shape = SHAPES[name]
    kind = getattr(transformers, cls)
    with torch.device("meta"):
        model = kind(kind.config_class(**shape))
        if "d_model" in shape:
            model.lm_head.weight = torch.nn.Parameter(torch.empty(shape["vocab_size"], shape["d_model"]))
    return model


@dataclass(frozen=True)
class Printed:
    """A count in a table: `text` as printed (if at all), `mark` whether the exact count rounds to it."""

    model: str
    method: Method
    exact: int
    text: str = ""
    mark: str = "="

    def __str__(self) -> str:
        return f"{self.model}-{type(self.method).__name__}-{self.text or self.exact}"


def rounds_to(exact: int, text: str) -> bool:
    """Whether the exact count, rounded to as many digits as printed, is what is printed."""
    unit = {"K": 10**3, "M": 10**6, "B": 10**9}[text[-1]]
    digits = len(text[:-1].partition(".")[2])
    return abs(exact / unit - float(text[:-1])) <= 0.5 * 10**-digits


def counted(model: str, method: Method) -> int:
    return attached(model, method).trainable


def attached(model: str, method: Method, head: bool = False) -> Trainable:
    built = build(model)
    fw.attach(built, method, head=head)
    count = fw.trainable(built)
    fw.detach(built)
    return count


def qv(rank: int) -> Method:
    return fw.LoRA(rank=rank, targets=("query", "value"))


FULL = [
    Printed("roberta-base", fw.Full(), 124_645_632, "125.0M", "!"),
    Printed("roberta-base", fw.Full(), 124_645_632, "125M"),
    Printed("roberta-large", fw.Full(), 355_359_744, "355.0M", "!"),
    Printed("roberta-large", fw.Full(), 355_359_744, "355M"),
    Printed("deberta-v2-xxl", fw.Full(), 1_564_549_632, "1500.0M", "!"),
    Printed("gpt2-medium", fw.Full(), 354_823_168, "354.92M", "!"),
    Printed("gpt2-medium", fw.Full(), 354_823_168, "345M", "!"),
    Printed("gpt2-large", fw.Full(), 774_030_080, "774.03M"),
    Printed("gpt2-xl", fw.Full(), 1_557_611_200, "1.5B", "!"),
    Printed("gpt3-175b", fw.Full(), 174_604_259_328, "175255.8M", "!"),
    Printed("bert-base", fw.Full(), 109_482_240, "109M"),
    Printed("bert-base-cased", fw.Full(), 108_310_272, "109M", "!"),
    Printed("bert-base-cased-pretraining", fw.Full(), 108_932_934, "109M"),
    Printed("bert-large", fw.Full(), 335_141_888, "335M"),
    Printed("bert-large-cased", fw.Full(), 333_579_264, "335M", "!"),
    Printed("t5-80m", fw.Full(), 76_961_152, "80M", "!"),
    Printed("t5-250m", fw.Full(), 247_577_856, "250M", "!"),
    Printed("t5-780m", fw.Full(), 783_150_080, "780M", "!"),
    Printed("t0-3b", fw.Full(), 2_849_757_184, "3B"),
    Printed("t0", fw.Full(), 11_135_332_352, "11B"),
    Printed("mt0-xxl", fw.Full(), 12_921_057_280, "12B", "!"),
    Printed("bloomz-7b1", fw.Full(), 7_069_016_064, "7B"),
    Printed("llama-7b", fw.Full(), 6_738_415_616, "7B"),
    Printed("llama-65b", fw.Full(), 65_285_660_672, "65B"),
]
TOP2 = [Printed("gpt2-medium", fw.Head(last=2), 25_192_448, "25.19M")]
BITFIT = [
    Printed("roberta-base", fw.BitFit(), 102_912, "0.1M"),
    Printed("bert-base", fw.BitFit(), 102_912),
    Printed("bert-large", fw.BitFit(), 272_384),
    Printed("gpt3-175b", fw.BitFit(), 12_988_416, "14.2M", "!"),
]
NORMS = [Printed("t0-3b", fw.LayerNorm(), 249_856, "250K")]
LORA = [
    Printed("roberta-base", qv(8), 294_912, "0.3M"),
    Printed("roberta-large", qv(8), 786_432, "0.8M"),
    Printed("deberta-v2-xxl", qv(16), 4_718_592, "4.7M"),
    Printed("deberta-v2-xxl", qv(8), 2_359_296, "4.7M", "!"),
    Printed("gpt2-medium", qv(4), 393_216, "0.35M", "!"),
    Printed("gpt2-large", qv(4), 737_280, "0.77M", "!"),
    Printed("gpt3-175b", qv(1), 4_718_592, "4.7M"),
    Printed("gpt3-175b", qv(8), 37_748_736, "37.7M"),
    Printed("gpt3-175b", fw.LoRA(rank=4, targets="attention"), 37_748_736, "37.7M"),
    Printed("gpt3-175b", fw.LoRA(rank=2, targets="attention"), 18_874_368, "37.7M", "!"),
    Printed("t0-3b", fw.LoRA(rank=4, targets="linear"), 8_847_360),
    Printed("t0-3b", qv(8), 4_718_592),
    Printed("mt0-xxl", qv(8), 9_437_184),
    Printed("bloomz-7b1", fw.LoRA(rank=8, targets=r"query_key_value"), 3_932_160),
    Printed("llama-7b", fw.LoRA(rank=64, targets="linear"), 159_907_840, "159.9M"),
]
BUDGET = [
    ("query",),
    ("key",),
    ("value",),
    ("output",),
    ("query", "key"),
    ("query", "value"),
    ("query", "key", "value", "output"),
]
IA3 = [
    Printed("t0-3b", fw.IA3(), 540_672, "540K", "!"),
    Printed("t0", fw.IA3(), 1_081_344),
]


def check(row: Printed) -> None:
    assert counted(row.model, row.method) == row.exact
    assert not row.text or rounds_to(row.exact, row.text) is (row.mark == "=")


@pytest.mark.parametrize("row", FULL, ids=str)
def test_full(row):
    check(row)


@pytest.mark.parametrize("row", TOP2, ids=str)
def test_top_two_blocks(row):
    check(row)


@pytest.mark.parametrize("row", BITFIT, ids=str)
def test_bitfit(row):
    check(row)


@pytest.mark.parametrize("row", NORMS, ids=str)
def test_layer_norm(row):
    check(row)


@pytest.mark.parametrize("row", LORA, ids=str)
def test_lora(row):
    check(row)


@pytest.mark.parametrize("targets", BUDGET, ids="-".join)
def test_lora_budget_of_table_5(targets):
    """18 × 2²⁰ parameters, printed "18M": rank 8 on one projection, 4 on two, 2 on all four."""
    rank = 8 // len(targets)
    assert counted("gpt3-175b", fw.LoRA(rank=rank, targets=targets)) == 18 * 2**20
    assert not rounds_to(18 * 2**20, "18M")


@pytest.mark.parametrize(
    ("targets", "per_rank"), [(("query",), 2_359_296), (("query", "value"), 4_718_592), ("attention", 9_437_184)]
)
@pytest.mark.parametrize("rank", [1, 2, 4, 8, 64])
def test_lora_ranks_of_table_6(targets, per_rank, rank):
    assert counted("gpt3-175b", fw.LoRA(rank=rank, targets=targets)) == rank * per_rank


@pytest.mark.parametrize("row", IA3, ids=str)
def test_ia3(row):
    check(row)


def test_ia3_on_disk():
    """ "4.2 MB": 1,081,344 floats of 4 bytes are 4.33 MB or 4.125 MiB; neither rounds to 4.2."""
    size = 4 * counted("t0", fw.IA3())
    assert size == 4_325_376
    assert round(size / 1e6, 1) == 4.3
    assert round(size / 2**20, 1) == 4.1


def test_peft_prints_for_mt0_large():
    """trainable params: 2359296 || all params: 1231940608 || trainable%: 0.19151053100118282"""
    count = attached("mt0-large", fw.LoRA(rank=8, alpha=32, dropout=0.1, targets=("query", "value")))
    assert (count.trainable, count.total) == (2_359_296, 1_231_940_608)
    assert count.share == 0.19151053100118282


def test_a_classification_head_is_counted_apart():
    """RoBERTa-base with LoRA r 8 and MNLI's head: 294,912 + 592,899; "0.3M" counts without heads."""
    assert attached("roberta-base-mnli", qv(8), head=True).trainable == 294_912 + 592_899


def test_a_step_of_gpt3_is_smaller_by_ten_thousand():
    """ "10,000 x fewer": 9,251 at r 4 on q and v; 37,003 at r 1."""
    full = counted("gpt3-175b", fw.Full())
    assert round(full / counted("gpt3-175b", qv(4))) == 9_251
    assert round(full / counted("gpt3-175b", qv(1))) == 37_003


def test_memory_of_the_weights():
    """GPT-3 in fp32 700 GB, LLaMA-65B fine-tuned in 16 bits over 780 GB (12 bytes each), BERT's file 436 MB."""
    assert round(4 * counted("gpt3-175b", fw.Full()) / 1e9) == 698
    assert round(12 * counted("llama-65b", fw.Full()) / 1e9) == 783
    assert round(4 * counted("bert-base-cased-pretraining", fw.Full()) / 1e6) == 436
