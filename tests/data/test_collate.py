import pytest

from featherweight.data.collate import collate, collate_packed
from featherweight.data.packing import packable
from featherweight.data.types import Encoded

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
MODELS = {
    "llama": ("LlamaConfig", dict(SIZES, intermediate_size=48, num_key_value_heads=2)),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
    "neox": ("GPTNeoXConfig", dict(SIZES, intermediate_size=48)),
    "phi3": ("Phi3Config", dict(SIZES, intermediate_size=48, num_key_value_heads=2, pad_token_id=0)),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}),
    "bert": ("BertConfig", dict(SIZES, intermediate_size=48)),
    "t5": ("T5Config", {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 64}),
}  # fmt: skip


def model_of(name, attention="sdpa"):
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = getattr(tf, MODELS[name][0])(**MODELS[name][1])
    auto = {"bert": tf.AutoModelForMaskedLM, "t5": tf.AutoModelForSeq2SeqLM}.get(name, tf.AutoModelForCausalLM)
    return auto.from_config(config, attn_implementation=attention).eval()


def items():
    sizes = (5, 9, 3, 7)
    rows = [[(11 * k + 5 * i) % 60 + 3 for i in range(n)] for k, n in enumerate(sizes)]
    return [Encoded(f"a:{k}", ids, [-100, *ids[1:]]) for k, ids in enumerate(rows)]


def summed(model, batch):
    import torch

    inputs = {k: v for k, v in batch.tensors.items() if k != "labels"}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.tensors["labels"][:, 1:].flatten(), reduction="sum"
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "phi3"])
def test_packed_and_padded_losses_agree(name, attention):
    model, rows = model_of(name, attention), items()
    padded = float(summed(model, collate(rows, 0)))
    assert float(summed(model, collate(rows, 0, packed=True))) == pytest.approx(padded, abs=1e-4)
    bins = collate_packed([rows[:2], rows[2:]], 0, multiple=8)
    assert bins.tensors["input_ids"].shape == (2, 16)
    assert float(summed(model, bins)) == pytest.approx(padded, abs=1e-4)


def test_packed_and_padded_losses_agree_on_a_pretrained_model(data_dir):
    from transformers import AutoModelForCausalLM

    model, rows = AutoModelForCausalLM.from_pretrained(data_dir / "stories260k/hf").eval(), items()
    assert packable(model) is None
    assert float(summed(model, collate(rows, None, packed=True))) == pytest.approx(
        float(summed(model, collate(rows, None))), abs=1e-4
    )


@pytest.mark.parametrize("name", MODELS)
def test_models_that_look_across_borders_are_refused(name):
    model = model_of(name, "eager" if name == "bloom" else "sdpa").train()
    reason = packable(model)
    assert (reason is None) == (name in ("llama", "gpt2", "neox", "phi3")), reason
    assert model.training


def test_padding_and_label_kinds():
    rows = [Encoded("a:1", [5, 6, 7], [-100, 6, 7], [0, 0, 1]), Encoded("a:2", [8], [8], [0])]
    t = collate(rows, None, multiple=8).tensors
    assert t["input_ids"].tolist() == [[5, 6, 7, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0]]
    assert t["attention_mask"].sum(1).tolist() == [3, 1]
    assert t["labels"][1].tolist() == [8] + [-100] * 7
    assert t["token_type_ids"][0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert collate([Encoded("a", [1], 2), Encoded("b", [1], 0)], 0).tensors["labels"].tolist() == [2, 0]
    scores = collate([Encoded("a", [1], 2.5), Encoded("b", [1], 0.0)], 0).tensors["labels"]
    assert scores.dtype.is_floating_point
    many = collate([Encoded("a", [1], [1.0, 0.0]), Encoded("b", [1], [0.0, 0.0])], 0).tensors["labels"]
    assert many.shape == (2, 2)
    assert "labels" not in collate([Encoded("a", [1], None)], 0).tensors
    seq2seq = collate([Encoded("a", [1, 2, 3], [4]), Encoded("b", [1], [4, 5])], 0).tensors
    assert seq2seq["labels"].tolist() == [[4, -100], [4, 5]]


def test_pad_never_hides_eos():
    batch = collate([Encoded("a", [1, 2], [-100, 2]), Encoded("b", [1, 3, 2], [-100, 3, 2])], 2)
    assert batch.tensors["labels"].tolist() == [[-100, 2, -100], [-100, 3, 2]]
    assert batch.where == ["a", "b"]


def test_a_row_without_label_is_named():
    with pytest.raises(ValueError, match="a:2: no label"):
        collate([Encoded("a:1", [1], 1), Encoded("a:2", [1], None)], 0)
