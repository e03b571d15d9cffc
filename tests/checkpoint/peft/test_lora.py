"""DoRA and the starts that are counted from the weight, in both directions between peft's files and ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.models import disturb, inputs, logits, tiny
from torch import Tensor, nn

import featherweight as fw
from featherweight.checkpoint.entry import packed
from featherweight.checkpoint.files import read_json
from featherweight.checkpoint.save import table
from featherweight.core.state import state

Judge = Callable[[Any, Path], Any]
WEIGHTS = "adapter_model.safetensors"
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]
METHODS = {
    "dora": fw.DoRA(rank=4),
    "dora-linear-rs": fw.DoRA(rank=2, alpha=3, targets="linear", rank_stabilized=True),
    "dora-patterns": fw.DoRA(rank=4, targets="attention", rank_pattern={"0.*": 3}, alpha_pattern={"1.*": 5}),
    "dora-embedding": fw.DoRA(rank=2, targets=("embedding", "query")),
    "pissa": fw.LoRA(rank=4, init="pissa"),
    "pissa-rs-patterns": fw.LoRA(
        rank=4,
        init="pissa",
        targets="attention",
        rank_pattern={"0.*": 3},
        alpha_pattern={"1.*": 5},
        rank_stabilized=True,
    ),
    "olora-linear": fw.LoRA(rank=3, alpha=1, init="olora", targets="linear"),
    "pissa-embedding": fw.LoRA(rank=2, init="pissa", targets=("embedding", "value")),
    "dora-pissa": fw.DoRA(rank=2, init="pissa", targets=("value", "down")),
}


def made(arch: str, method: Any) -> Any:
    torch.manual_seed(7)
    model = fw.attach(tiny(arch), method, head=False)
    disturb(model)
    return model


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "phi3", "t5"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_peft_reads_ours(method: Any, arch: str, tmp_path: Path, judge: Judge, caplog: Any) -> None:
    model = made(arch, method)
    fw.save(model, tmp_path)
    theirs = judge(tiny(arch), tmp_path)
    assert not [r for r in caplog.records if r.name.startswith("peft")]
    assert (logits(model, inputs(arch)) - logits(tiny(arch), inputs(arch))).abs().max() > 1e-4
    far = float((logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max())
    assert far <= (1e-5 if arch == "t5" else 1e-6)  # T5's unscaled attention magnifies rounding: fp64 tells
    again = fw.load(tiny(arch), tmp_path)
    ours, back = state(model, "default"), state(again, "default")
    assert list(ours) == list(back)
    assert all(torch.equal(ours[k], back[k]) for k in ours)
    # what a file says of the rows beside DoRA's slices is their norm, rounded to fp32
    near = 1e-7 if isinstance(method, fw.DoRA) and arch in ("gpt2", "phi3") else 1e-10
    assert (logits(model.double(), inputs(arch)) - logits(theirs.double(), inputs(arch))).abs().max() <= near


def written(arch: str, folder: Path, **fields: Any) -> Any:
    """A peft model with values of its own, saved."""
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(tiny(arch), LoraConfig(r=4, lora_alpha=6, **fields)).eval()
    disturb(theirs, 0.2)
    theirs.save_pretrained(str(folder))
    return theirs


@pytest.mark.parametrize(("arch", "fields"), [
    ("bert", {"target_modules": ["query", "output.dense"]}),
    ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    ("llama", {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"q_proj": 2}}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}),
    ("t5", {"target_modules": ["q", "wo"]}), ("phi3", {"target_modules": ["qkv_proj"]}),
], ids=str)  # fmt: skip
def test_we_read_dora(arch: str, fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = written(arch, tmp_path, use_dora=True, **fields)
    model = fw.load(tiny(arch), tmp_path)
    far = (logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max()
    assert far <= (1e-5 if arch == "t5" else 1e-6)
    assert (logits(model.double(), inputs(arch)) - logits(theirs.double(), inputs(arch))).abs().max() <= 1e-10
    fw.save(model.float(), tmp_path / "again")
    assert read_json(tmp_path / "again" / "adapter_config.json")["use_dora"] is True
    ours = load_file(tmp_path / "again" / WEIGHTS)
    assert all(torch.equal(t, load_file(tmp_path / WEIGHTS)[k]) for k, t in ours.items())


@pytest.mark.parametrize(("arch", "method"), [
    ("bert", fw.DoRA(rank=4)), ("llama", fw.DoRA(rank=4, targets="linear", rank_stabilized=True)),
    ("gpt2", fw.DoRA(rank=3, targets=("output", "up", "down"))),
    ("llama", fw.DoRA(rank=2, targets=("embedding", "value"))),
    ("t5", fw.DoRA(rank=3)), ("llama", fw.LoRA(rank=3, init="orthogonal")),
], ids=str)  # fmt: skip
def test_one_step_of_training(arch: str, method: Any, tmp_path: Path) -> None:
    """From one checkpoint, one batch and one SGD step: the same parameters."""
    from peft import PeftModel, get_peft_model_state_dict

    model = made(arch, method)
    fw.save(model, tmp_path)
    before = {k: t.clone() for k, t in held(model).items()}
    theirs = PeftModel.from_pretrained(tiny(arch), str(tmp_path), is_trainable=True).eval()
    for each in (model, theirs):
        step(each, inputs(arch))
    ours, peers = held(model), get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert sorted(ours) == sorted(peers)
    assert max(float((ours[k] - before[k]).abs().max()) for k in ours) > 1e-5
    assert not any(torch.equal(ours[k], before[k]) for k in ours)
    assert max(float((ours[k] - peers[k]).abs().max()) for k in ours) <= 1e-6


def held(model: Any) -> dict[str, Tensor]:
    """What a file would hold now."""
    return packed(table(model, "default"), state(model, "default"))


def step(model: Any, batch: dict[str, Tensor], lr: float = 0.1) -> None:
    params = [p for p in model.parameters() if p.requires_grad]
    model(**batch).logits.square().mean().backward()
    torch.optim.SGD(params, lr=lr).step()
    for p in params:
        p.grad = None


class Toy(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1)
        self.next = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.next(torch.relu(self.conv(x)))).mean((2, 3)))


def toy() -> Toy:
    torch.manual_seed(2)
    return Toy().eval()


@pytest.mark.parametrize("method", [
    fw.DoRA(rank=2, targets=("conv", "next", "out")), fw.LoRA(rank=2, targets=("conv", "out"), init="pissa"),
    fw.LoRA(rank=2, targets=("conv", "out"), init="orthogonal"),
], ids=str)  # fmt: skip
def test_convolutions(method: Any, tmp_path: Path, judge: Judge) -> None:
    model = fw.attach(toy(), method, head=False)
    disturb(model)
    fw.save(model, tmp_path)
    theirs = judge(toy(), tmp_path)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert (model(x) - toy()(x)).abs().max() > 1e-3
        assert (model(x) - theirs(x)).abs().max() <= 1e-6
        assert torch.equal(fw.load(toy(), tmp_path)(x), model(x))


@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("stabilized", [False, True])
def test_training_from_the_weight_equals_pefts_changed_base(init: str, stabilized: bool, tmp_path: Path) -> None:
    """Three steps of SGD: the same model, although peft took W apart and we did not; then its portable file is read."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj", "up_proj"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=init, use_rslora=stabilized)
    theirs = get_peft_model(tiny("llama"), config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(tmp_path / "start"))
    theirs.peft_config["default"].init_lora_weights = init
    roles = ("query", "value", "up")
    model = fw.attach(tiny("llama"), fw.LoRA(rank=4, alpha=6, targets=roles, init=init, rank_stabilized=stabilized))
    for each in (model, theirs):
        for _ in range(3):
            step(each, inputs("llama"), 0.3)
    wanted = logits(theirs, inputs("llama"))
    assert (wanted - logits(tiny("llama"), inputs("llama"))).abs().max() > 1e-3
    assert (logits(model, inputs("llama")) - wanted).abs().max() <= 5e-6
    theirs.save_pretrained(str(tmp_path), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    loaded = fw.load(tiny("llama"), tmp_path)
    assert (logits(loaded, inputs("llama")) - wanted).abs().max() <= 5e-6


def test_a_start_from_the_weight_is_written_with_twice_the_rank(tmp_path: Path) -> None:
    model = made("llama", METHODS["pissa-rs-patterns"])
    fw.save(model, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    assert config["init_lora_weights"] is True
    assert (config["r"], set(config["rank_pattern"].values())) in ((8, {6}), (6, {8}))
    alphas = {config["lora_alpha"], *config["alpha_pattern"].values()}
    assert sorted(alphas) == pytest.approx([5 * 2**0.5, 8 * 2**0.5])
    tensors, key = load_file(tmp_path / WEIGHTS), "base_model.model.model.layers.1.self_attn.q_proj."
    own = state(model, "default")
    path = "model.layers.1.self_attn.q_proj."
    assert torch.equal(tensors[f"{key}lora_A.weight"], torch.cat([own[f"{path}lora_A.weight"], own[f"{path}origin_A"]]))
    wanted_B = torch.cat([own[f"{path}lora_B.weight"], -own[f"{path}origin_B"]], 1)
    assert torch.equal(tensors[f"{key}lora_B.weight"], wanted_B)


def test_loading_does_not_decompose_the_weights_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama", METHODS["pissa"])
    fw.save(model, tmp_path)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a decomposition whose result is overwritten at once")

    monkeypatch.setattr(torch.linalg, "svd", never)
    assert torch.equal(logits(fw.load(tiny("llama"), tmp_path), inputs("llama")), logits(model, inputs("llama")))
