"""PEFT reads our prefixes and gated prompts and we read its, with equal outputs and equal steps."""

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny
from support.zoo import ZOO, build
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.state import state

# (model, PEFT's task)
PLAIN = [
    ("llama", "CAUSAL_LM"),
    ("gpt2", "CAUSAL_LM"),
    ("bert", "SEQ_CLS"),
    ("roberta", "SEQ_CLS"),
    ("neox", "CAUSAL_LM"),
    ("phi3", "CAUSAL_LM"),
]
ZOO_TOO = [
    (n, "CAUSAL_LM") for n in ("mistral", "gemma", "qwen3", "opt", "bloom", "gpt-j", "gpt-neo", "falcon-multi-head")
]


def base(arch: str) -> Any:
    if arch not in ZOO:
        return tiny(arch)
    torch.manual_seed(0)
    return build(*ZOO[arch][:3]).eval()


def batch(arch: str) -> dict[str, Tensor]:
    ids = inputs("llama" if arch in ZOO else arch, rows=2)["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def judged(base: Any, config: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(3)
    return get_peft_model(base, config).eval()


def prefix_config(task: str, **more: Any) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type=task, num_virtual_tokens=4, **more)


def same(a: Tensor, b: Tensor) -> None:
    """Equal within 1e-6 of the largest logit."""
    assert (a - b).abs().max() <= 1e-6 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize(("arch", "task"), [*PLAIN, *ZOO_TOO])
@pytest.mark.parametrize("projection", [False, True])
def test_we_read_pefts_prefix(arch: str, task: str, projection: bool, tmp_path: Path) -> None:
    """A projection is dropped by PEFT when it saves: what is in the file is the prefix."""
    theirs = judged(base(arch), prefix_config(task, prefix_projection=projection, encoder_hidden_size=12))
    with torch.no_grad():
        expected = real(theirs(**batch(arch)).logits, arch)
    theirs.save_pretrained(str(tmp_path))
    ours = fw.load(base(arch), tmp_path)
    assert repr(fw.core.switch.switch_of(ours).attached["default"].method) == "Prefix(tokens=4, hidden=0)"
    same(real(logits(ours, batch(arch)), arch), expected)


@pytest.mark.parametrize(("arch", "task"), [*PLAIN, *ZOO_TOO])
@pytest.mark.parametrize("hidden", [0, 6])
def test_peft_reads_our_prefix(arch: str, task: str, hidden: int, tmp_path: Path, judge: Any) -> None:
    model = fw.attach(base(arch), fw.Prefix(tokens=4, hidden=hidden))
    disturb(model, 0.5)
    fw.save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["num_virtual_tokens"]) == ("PREFIX_TUNING", task, 4)
    theirs = judge(base(arch), tmp_path)
    with torch.no_grad():
        same(real(theirs(**batch(arch)).logits, arch), real(logits(model, batch(arch)), arch))
    again = fw.load(base(arch), tmp_path)
    same(logits(again, batch(arch)), logits(model, batch(arch)))
    fw.save(again, tmp_path / "again")
    files = [d / "adapter_model.safetensors" for d in (tmp_path, tmp_path / "again")]
    assert read(files[0]).keys() == read(files[1]).keys()
    assert all(torch.equal(t, read(files[1])[k]) for k, t in read(files[0]).items())


def real(y: Tensor, arch: str) -> Tensor:
    """The logits of tokens that are no padding."""
    return y[batch(arch)["attention_mask"].bool()] if y.dim() == 3 else y


def read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


@pytest.mark.parametrize(("arch", "task"), PLAIN[:3])
def test_one_step_is_pefts_step(arch: str, task: str, tmp_path: Path) -> None:
    theirs = judged(tiny(arch), prefix_config(task))
    theirs.save_pretrained(str(tmp_path / "start"))
    ours = fw.load(tiny(arch), tmp_path / "start", train=True)
    for model in (ours, theirs):
        model.train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        real(model(**batch(arch)).logits, arch).square().sum().backward()
        optimizer.step()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    fw.save(ours, tmp_path / "ours")
    one, two = (read(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    start = read(tmp_path / "start" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    for key, t in two.items():
        assert not torch.equal(t, start[key])
        assert (one[key] - t).abs().max() <= 1e-6 * max(1.0, float(t.abs().max()))


def test_generation_is_pefts(tmp_path: Path) -> None:
    """Cached and left-padded, greedy and with beams."""
    theirs = judged(tiny("llama"), prefix_config("CAUSAL_LM"))
    theirs.save_pretrained(str(tmp_path))
    ours = fw.load(tiny("llama"), tmp_path)
    ids = inputs("llama")["input_ids"]
    mask = torch.ones_like(ids)
    for beams in (1, 3):
        told = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
        expected = theirs.generate(input_ids=ids, attention_mask=mask, **told)
        assert torch.equal(ours.generate(ids, attention_mask=mask, **told), expected)


@pytest.mark.parametrize("arch", ["llama", "mistral"])
@pytest.mark.parametrize("layers", [1, 2])
def test_we_read_pefts_gated_prompts_and_it_reads_ours(arch: str, layers: int, tmp_path: Path, judge: Any) -> None:
    from peft import AdaptionPromptConfig

    theirs = judged(base(arch), AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=layers))
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("adaption_gate"):
                p.fill_(0.7)
        expected = theirs(**batch("llama")).logits
    theirs.save_pretrained(str(tmp_path))
    ours = fw.load(base(arch), tmp_path)
    same(logits(ours, batch("llama")), expected)
    assert (logits(ours, batch("llama")) - logits(base(arch), batch("llama"))).abs().max() > 1e-4
    fw.save(ours, tmp_path / "ours")
    assert sorted(read(tmp_path / "ours" / "adapter_model.safetensors")) == sorted(
        read(tmp_path / "adapter_model.safetensors")
    )
    again = judge(base(arch), tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(**batch("llama")).logits, expected)


def test_one_step_of_gated_prompts_is_pefts(tmp_path: Path) -> None:
    from peft import AdaptionPromptConfig

    theirs = judged(tiny("llama"), AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2))
    theirs.save_pretrained(str(tmp_path))
    ours = fw.load(tiny("llama"), tmp_path, train=True)
    for _ in range(2):  # at a gate of 0 the prompt has no gradient yet
        for model in (ours, theirs):
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=0.5)
            model(**batch("llama")).logits.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    one = state(ours, "default")
    two = {k.split("base_model.model.")[-1]: p for k, p in theirs.named_parameters() if "adaption" in k}
    assert one.keys() == two.keys()
    for key, t in two.items():
        torch.testing.assert_close(one[key], t.detach(), atol=1e-6, rtol=1e-6)


OWN = [fw.Prefix(tokens=3, hidden=4), fw.Prefix(tokens=3, layers=1), fw.LlamaAdapter(tokens=3)]


@pytest.mark.parametrize(
    ("arch", "method"),
    [*product(["t5", "distilbert"], OWN), *product(["gpt2"], OWN[1:]), ("falcon-grouped", OWN[0])],
)
def test_what_peft_cannot_say_is_kept_in_our_own_form(method: Any, arch: str, tmp_path: Path) -> None:
    model = fw.attach(base(arch), method, head=False)
    disturb(model, 0.5)
    fw.save(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == f"FEATHERWEIGHT_{type(method).__name__.upper()}"
    fed = inputs(arch) if arch not in ZOO else inputs("llama")
    same(logits(fw.load(base(arch), tmp_path), fed), logits(model, fed))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"revision": "x"}))  # now taken at its word
    same(logits(fw.load(base(arch), tmp_path), fed), logits(model, fed))


def test_what_pefts_files_mean_elsewhere_is_refused(tmp_path: Path) -> None:
    """Its prefix of an encoder-decoder leaves half of itself out; its gated prompts on GPT-2 are another function."""
    from peft import AdaptionPromptConfig

    judged(tiny("t5"), prefix_config("SEQ_2_SEQ_LM")).save_pretrained(str(tmp_path / "t5"))
    with pytest.raises(fw.InputError, match="encoder-decoder"):
        fw.load(tiny("t5"), tmp_path / "t5")
    judged(base("falcon-grouped"), prefix_config("CAUSAL_LM")).save_pretrained(str(tmp_path / "falcon"))
    with pytest.raises(fw.InputError, match="queries that share"):
        fw.load(base("falcon-grouped"), tmp_path / "falcon")
    config = AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1)
    judged(tiny("gpt2"), config).save_pretrained(str(tmp_path / "gpt2"))
    with pytest.raises(fw.InputError, match="behind the output projection"):
        fw.load(tiny("gpt2"), tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("change", "what"), [({"num_virtual_tokens": None}, "no virtual tokens"), ({"token_dim": "x"}, "wrong type")]
)
def test_a_damaged_config(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    judged(tiny("llama"), prefix_config("CAUSAL_LM")).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(fw.InputError, match=what):
        fw.load(tiny("llama"), tmp_path)


def test_a_file_of_another_width_is_refused(tmp_path: Path) -> None:
    judged(tiny("gpt2"), prefix_config("CAUSAL_LM")).save_pretrained(str(tmp_path))
    model = tiny("llama")
    plain = copy.deepcopy(model)
    with pytest.raises(fw.InputError, match="misshapen"):
        fw.load(model, tmp_path)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
