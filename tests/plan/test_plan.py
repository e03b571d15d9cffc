"""Plans against hand-worked numbers, against whole traces and against what cannot be planned."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.plan import Plan, facts, shell, traced
from featherweight.plan.fit import fit, ways_out
from featherweight.plan.placement import placements

LLAMA: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def llama(**options: Any) -> Any:
    return hf.LlamaConfig(**LLAMA | options)


@pytest.fixture(scope="module")
def small() -> Plan:
    return fw.plan(llama(), fw.LoRA(rank=4, targets="linear"), batch=2, length=8)


def test_parts_that_a_hand_can_work_out(small: Plan) -> None:
    d, f, vocab, rank = 32, 48, 99, 4
    base = 2 * (4 * d * d + 3 * d * f + 2 * d) + 2 * vocab * d + d
    adapter = 2 * rank * (4 * 2 * d + 3 * (d + f))
    assert (small.trainable, small.total) == (adapter, base + adapter)
    rotary = 2 * (d // 4 // 2) * 4  # the frequencies, and the ones they were made from
    assert small.memory["weights"] == 4 * base + rotary
    assert small.memory["adapters"] == 4 * adapter
    counters = small.memory["optimizer states"] - 2 * 4 * adapter  # a step count for each tensor
    assert 0 <= counters <= 8 * 2 * 7 * 2
    assert small.kv_cache == 2 * 2 * 2 * 8 * d * 4  # keys and values, layers, rows, tokens
    linears = 2 * (4 * d * d + 3 * d * f)
    assert small.token_flops >= 2 * (linears + adapter + vocab * d)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", [fw.Pfeiffer(bottleneck=4), fw.LlamaAdapter(tokens=2, layers=3)], ids=repr)
def test_a_cut_run_continues_as_the_whole(method: Any, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"batch": 2, "length": 16, "checkpointing": checkpointing}
    whole = fw.plan(llama(num_hidden_layers=12), method, **options)
    monkeypatch.setattr(traced, "WHOLE", 6)
    assert fw.plan(llama(num_hidden_layers=12), method, **options) == whole


def test_encoder_and_decoder_continue_each_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = hf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=10, num_decoder_layers=12, num_heads=4,
                         decoder_start_token_id=0)  # fmt: skip
    whole = fw.plan(config, fw.LoRA(), batch=2, length=16)
    monkeypatch.setattr(traced, "WHOLE", 6)
    assert fw.plan(config, fw.LoRA(), batch=2, length=16).to_dict() == whole.to_dict()


def test_recomputing_and_halves_cost_less() -> None:
    once = fw.plan(llama(), fw.LoRA(), batch=8, length=32)
    again = fw.plan(llama(), fw.LoRA(), batch=8, length=32, checkpointing=True)
    half = fw.plan(llama(), fw.LoRA(), batch=8, length=32, precision="bf16")
    assert again.memory["activations"] < once.memory["activations"]
    assert again.flops > once.flops
    assert half.memory["weights"] * 2 == pytest.approx(once.memory["weights"], rel=0.01)


def test_paged_states_are_not_in_memory(small: Plan) -> None:
    paged = fw.plan(llama(), fw.LoRA(rank=4, targets="linear"), batch=2, length=8, paged=True)
    assert "optimizer states" not in paged.resting
    assert "optimizer states" in small.resting


def test_quantized_weights_are_counted_as_they_are_stored() -> None:
    made = fw.plan(llama(), fw.LoRA(), fw.NF4(double=True), batch=1, length=8)
    shapes = [(32, 32)] * 4 + [(48, 32)] * 2 + [(32, 48)]
    assert made.memory["codes and scales"] == 2 * sum(fw.NF4(double=True).size(s) for s in shapes)


# reference figures of the 16-bit models' linear layers, and of NF4 with and without double quantization, in GB
SIZES = {
    "7B": (4096, 11008, 32, 6_476_005_376, 3.64, 3.34),
    "13B": (5120, 13824, 40, 12_687_769_600, 7.14, 6.55),
    "65B": (8192, 22016, 80, 64_760_053_760, 36.43, 33.41),
}


@pytest.mark.parametrize("name", SIZES)
def test_llamas_in_nf4(name: str) -> None:
    d, f, layers, linear, plain, double = SIZES[name]
    config = llama(vocab_size=32000, hidden_size=d, intermediate_size=f, num_hidden_layers=layers,
                   num_attention_heads=d // 128, max_position_embeddings=2048)  # fmt: skip
    for scheme, expected in ((fw.NF4(), plain), (fw.NF4(double=True), double)):
        made = fw.plan(config, None, scheme, batch=1, length=8, precision="bf16")
        model = shell.built(config, "AutoModelForCausalLM", shell.torch.bfloat16, {})
        outside = sum(p.numel() for n, p in model.named_parameters() if "proj" not in n)
        assert made.total - outside == linear
        codes = made.peaks["load"] - 2 * outside - shell.largest_tensor(model)
        assert codes / 1e9 == pytest.approx(expected, abs=0.006)


def test_every_method_can_be_planned_on_an_encoder() -> None:
    config = hf.BertConfig(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                           num_attention_heads=4, max_position_embeddings=64)  # fmt: skip
    for method in (fw.Full(), fw.DoRA(), fw.Prompt(tokens=3), fw.DeepPrompt(tokens=2), fw.Head()):
        made = fw.plan(config, method, batch=2, length=8)
        assert made.train_bytes > made.memory["weights"]
        assert isinstance(made.task, fw.Classification)


def test_encoder_decoders_are_planned_for_both_sides() -> None:
    config = hf.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    made = fw.plan(config, fw.LoRA(), batch=2, length=8)
    assert isinstance(made.task, fw.Seq2Seq)
    assert made.kv_cache == 2 * 2 * 2 * 2 * 8 * 32 * 4  # of the decoder itself, and of what the encoder said


def test_placements_share_and_offload(small: Plan) -> None:
    one, zero2, zero3, offload = placements(small, 4)
    assert one.device == small.train_bytes > zero2.device > zero3.device
    assert offload.device < one.device <= offload.device + offload.host + 4
    with pytest.raises(ValueError, match="at least one device"):
        placements(small, 0)


def test_what_fits_does_fit_and_more_rows_do_not() -> None:
    config = llama(num_hidden_layers=2)
    one = fw.plan(config, fw.LoRA(), batch=1, length=64)
    two = fw.plan(config, fw.LoRA(), batch=2, length=64)
    limit = one.train_bytes + 3 * (two.train_bytes - one.train_bytes) + 100
    option, *more = fit(config, limit, [fw.LoRA()], [None], length=64)
    assert option.plan.train_bytes <= limit
    assert option.plan.batch == 4
    assert option.accumulate == 2
    assert [o.checkpointing for o in more] == [True]
    assert fit(config, 1000, [fw.LoRA()], [None], length=64) == []
    assert next(ways_out(two, False)).startswith("--accumulate 2")


def test_data_facts_need_only_the_tokenizer(data_dir: Path) -> None:
    rows = [{"prompt": "Once upon a time", "completion": " there was a dog."}] * 5
    made = fw.plan(data_dir / "stories260k" / "hf", fw.LoRA(), batch=2, length=8, data=rows)
    assert made.data["rows"] == 5
    assert made.data["steps_per_epoch"] == 3
    assert made.data["cut_rows"] == 5
    assert made.data["tokens_per_epoch"] == 40


def test_labels_of_the_data_decide_the_head(data_dir: Path) -> None:
    path = data_dir / "stories260k" / "hf"
    rows = [{"text": f"row {i}", "label": "abc"[i % 3]} for i in range(6)]
    made = fw.plan(path, fw.Head(), batch=2, length=8, data=rows)
    assert made.task.model_options()["num_labels"] == 3
    assert made.trainable == 3 * 64


def test_virtual_tokens_leave_rows_fewer_learned_positions(data_dir: Path) -> None:
    """As training would: rows are cut to what is left, a length beyond that is refused, and so is a prompt of all."""
    config = hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    assert fw.plan(config, fw.LoRA(), batch=1).length == 128
    made = fw.plan(config, fw.Prompt(tokens=100), batch=1)
    assert (made.length, made.tokens) == (28, 28)
    with pytest.raises(InputError, match=r"1 to 28: 128 positions less 100 virtual tokens.*64"):
        fw.plan(config, fw.Prompt(tokens=100), batch=1, length=64)
    with pytest.raises(InputError, match="leave no position for the text"):
        fw.plan(config, fw.Prompt(tokens=128), batch=1)
    path = data_dir / "stories260k" / "hf"  # a rotation goes on
    assert fw.plan(path, fw.Prompt(tokens=1000), batch=1, length=64).length == 64


def test_an_unknown_architecture_is_never_guessed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lama", "hidden_size": 32}))
    with pytest.raises(InputError, match=r"modules cannot be seen.*llama"):
        fw.plan(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        fw.plan(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        fw.plan(tmp_path / "nothing" / "here")


@pytest.mark.parametrize("wrong", [{"hidden_size": 30}, {"vocab_size": -5}, {"num_attention_heads": 0}], ids=str)
def test_a_config_that_makes_no_model_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="config"):
        fw.plan({"model_type": "llama"} | LLAMA | wrong)


def test_settings_are_those_of_training() -> None:
    with pytest.raises(InputError, match="batch"):
        fw.plan(llama(), fw.LoRA(), bacth=3)
    with pytest.raises(InputError, match="more tokens than the model has positions"):
        fw.plan(llama(), fw.LoRA(), length=65)
    assert facts.length_of(llama(), None, 512) == 64


def test_a_probe_takes_time(small: Plan) -> None:
    made = fw.plan(llama(), fw.LoRA(), batch=2, length=8, probe=True)
    assert made.seconds is not None
    assert made.seconds > 0
    assert small.seconds is None
