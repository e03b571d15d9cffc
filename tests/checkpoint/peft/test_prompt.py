"""Prompt tuning and P-tuning on disk, the real peft as the judge: both directions, and one step of training."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import disturb, inputs, labelled, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS, read_json
from featherweight.core.state import adapters, state

TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "roberta": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
KINDS = ("prompt", "ptuning")
PLAIN = {"prompt": fw.Prompt(tokens=5), "ptuning": fw.PTuning(template=(5,), encoder="none")}


def config(kind: str, arch: str, **fields: Any) -> Any:
    from peft import PromptEncoderConfig, PromptTuningConfig

    if kind == "prompt":
        return PromptTuningConfig(task_type=TASKS[arch], num_virtual_tokens=5, **fields)
    return PromptEncoderConfig(task_type=TASKS[arch], num_virtual_tokens=5, **{"encoder_hidden_size": 16} | fields)


def theirs_of(arch: str, made: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny(arch), made).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape))
    return model


def read_by_peft(arch: str, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny(arch), str(folder)).eval()


def batch(arch: str) -> dict[str, torch.Tensor]:
    """Right-padded: peft puts its tokens in front of the pads, so only there it means what we mean."""
    given = inputs(arch, rows=3)
    mask = torch.ones_like(given["input_ids"])
    mask[1, 5:] = 0
    return given | {"attention_mask": mask}


def same(ours: Any, theirs: Any, arch: str, limit: float = 1e-6) -> None:
    """Equal logits at real tokens; peft's hold the virtual tokens' too."""
    given = batch(arch)
    mine, other = logits(ours, given), logits(theirs, given)
    if arch in ("llama", "gpt2"):
        other = other[:, -mine.shape[1] :]
        mine, other = (x[given["attention_mask"] > 0] for x in (mine, other))
    assert mine.shape == other.shape
    assert (logits(ours, given) - logits(tiny(arch), given)).abs().max() > 1e-4
    assert (mine - other).abs().max() <= limit


@pytest.mark.parametrize("arch", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_we_read_peft(kind: str, arch: str, tmp_path: Path) -> None:
    theirs = theirs_of(arch, config(kind, arch))
    theirs.save_pretrained(str(tmp_path))
    model = fw.load(tiny(arch), tmp_path)
    same(model, theirs, arch, 2e-5 if arch == "t5" else 1e-6)
    same(fw.load(tiny(arch), tmp_path).double(), read_by_peft(arch, tmp_path).double(), arch, 1e-10)
    fw.save(model, tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k][: len(ours[k])]) for k in ours)
    assert all(len(ours[k]) == len(peers[k]) for k in ours if arch != "t5")


def test_an_lstm_of_peft(tmp_path: Path) -> None:
    theirs = theirs_of("llama", config("ptuning", "llama", encoder_reparameterization_type="LSTM"))
    theirs.save_pretrained(str(tmp_path))
    same(fw.load(tiny("llama"), tmp_path), theirs, "llama")


@pytest.mark.parametrize("arch", TASKS)
@pytest.mark.parametrize("method", [fw.Prompt(tokens=5), fw.PTuning(template=(5,)), fw.PTuning(template="PPPPP x", encoder="mlp")])  # fmt: skip  # noqa: E501
def test_peft_reads_ours(method: Any, arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(2)
    model = fw.attach(tiny(arch), method)
    disturb(model)
    fw.save(model, tmp_path)
    theirs = read_by_peft(arch, tmp_path)
    assert not [r for r in caplog.records if r.name.startswith("peft")]
    again = fw.load(tiny(arch), tmp_path)
    assert torch.equal(logits(again, inputs(arch)), logits(model, inputs(arch)))
    same(again.double(), theirs.double(), arch, 1e-10)
    heads = {k for k in load_file(tmp_path / WEIGHTS) if k != "prompt_embeddings"}
    assert bool(heads) == (arch in ("bert", "roberta"))
    assert all(k.startswith("base_model.classifier.") for k in heads)


@pytest.mark.parametrize("arch", ["llama", "bert", "t5"])
def test_generation_and_training_go_on_as_in_peft(arch: str, tmp_path: Path) -> None:
    """One step of SGD on the same tensors and batch: the prompt, and the head where there is one, end up equal."""
    theirs = theirs_of(arch, config("prompt", arch))
    theirs.save_pretrained(str(tmp_path))
    model = fw.load(tiny(arch), tmp_path, train=True)
    given = labelled(arch)
    if arch == "llama":  # without shifting: peft also asks the last virtual token for the first word
        given["labels"] = given["labels"].clone()
        given["labels"][:, 0] = -100
    for one in (model.eval(), theirs):
        params = [p for p in one.parameters() if p.requires_grad]
        torch.optim.SGD(params, lr=0.1).zero_grad()
        one(**given).loss.backward()
        torch.optim.SGD(params, lr=0.1).step()
    ours = next(t for k, t in state(model, "default").items() if k.endswith("prompt_embeddings"))
    peers = theirs.prompt_encoder.default.embedding.weight.detach()
    assert (ours - load_file(tmp_path / WEIGHTS)["prompt_embeddings"][:5]).abs().max() > 1e-6
    assert (ours - peers[:5]).abs().max() <= 1e-6
    if arch == "bert":
        head = next(t for k, t in state(model, "default").items() if k.endswith("classifier.weight"))
        assert (head - theirs.base_model.classifier.modules_to_save.default.weight).abs().max() <= 1e-6


def test_the_half_that_peft_never_uses_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = theirs_of("t5", config("prompt", "t5"))
    theirs.save_pretrained(str(tmp_path))
    kept = load_file(tmp_path / WEIGHTS)
    assert kept["prompt_embeddings"].shape == (10, 32)
    before = logits(theirs, inputs("t5"))
    with torch.no_grad():
        theirs.prompt_encoder.default.embedding.weight[5:] += 1
    assert torch.equal(logits(theirs, inputs("t5")), before), "peft uses it after all"
    with caplog.at_level(logging.WARNING, "featherweight"):
        fw.load(tiny("t5"), tmp_path)
    assert "the last 5 of 10 rows" in caplog.text
    save_file({"prompt_embeddings": kept["prompt_embeddings"][:7].contiguous()}, tmp_path / WEIGHTS)
    with pytest.raises(fw.InputError, match=r"prompt_embeddings.*expected \(5, 32\); got \(7, 32\)"):
        fw.load(tiny("t5"), tmp_path)


@pytest.mark.parametrize(
    "fields", [{"num_virtual_tokens": 0}, {"num_virtual_tokens": "5"}, {"num_virtual_tokens": None}]
)
def test_a_config_without_sense(fields: dict[str, Any], tmp_path: Path) -> None:
    import json

    theirs_of("llama", config("prompt", "llama")).save_pretrained(str(tmp_path))
    (tmp_path / CONFIG).write_text(json.dumps(read_json(tmp_path / CONFIG) | fields))
    with pytest.raises(fw.InputError, match="num_virtual_tokens"):
        fw.load(tiny("llama"), tmp_path)


@pytest.mark.parametrize("arch", ["bert", "t5"])
def test_a_template_is_ours_alone(arch: str, tmp_path: Path) -> None:
    """What peft cannot place goes into our own type, which it refuses by name; it comes back as plain tokens."""
    model = fw.attach(tiny(arch), fw.PTuning(template=(2, 0, 1)), head=False)
    disturb(model)
    fw.save(model, tmp_path)
    assert read_json(tmp_path / CONFIG)["peft_type"] == "FEATHERWEIGHT_PTUNING"
    again = fw.load(tiny(arch), tmp_path)
    assert torch.equal(logits(again, inputs(arch)), logits(model, inputs(arch)))
    assert sum(t.numel() for t in state(again, "default").values()) == 3 * 32
    assert len(adapters(again, "default")) == (2 if arch == "t5" else 1)


def test_prompts_of_a_decoder_are_ours_alone(tmp_path: Path) -> None:
    model = fw.attach(tiny("t5"), fw.Prompt(tokens=3, decoder=True))
    disturb(model)
    fw.save(model, tmp_path)
    assert read_json(tmp_path / CONFIG)["peft_type"] == "FEATHERWEIGHT_PROMPT"
    again = fw.load(tiny("t5"), tmp_path)
    assert torch.equal(logits(again, inputs("t5")), logits(model, inputs("t5")))


def test_an_edited_config_of_ours_is_still_read(tmp_path: Path) -> None:
    """Its JSON alone then says what it is."""
    import json

    model = fw.attach(tiny("t5"), fw.Prompt(tokens=3, decoder=True))
    fw.save(model, tmp_path)
    form = read_json(tmp_path / CONFIG)
    form["method"]["init"] = "normal"
    (tmp_path / CONFIG).write_text(json.dumps(form))
    again = fw.load(tiny("t5"), tmp_path)
    assert torch.equal(logits(again, inputs("t5")), logits(model, inputs("t5")))
