"""Loading a base: dtype, tokenizer, new tensors, and every way in which a folder can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny

from featherweight.core.errors import InputError
from featherweight.interop.transformers import load_base, load_tokenizer
from featherweight.tasks import CausalLM, Classification

TASK = Classification(labels=("bad", "good", "fine"))


def copied(folder: Path, to: Path, without: str = "") -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(without) if without else None)
    to.chmod(0o755)
    return to


def test_a_new_head(bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.random.get_rng_state()
    model = load_base(bert, TASK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.new_tensors == ["classifier.bias", "classifier.weight"]
    assert model.task == TASK
    assert model.config.id2label == {0: "bad", 1: "good", 2: "fine"}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    again = load_base(bert, TASK)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, load_base(bert, TASK, seed=1).classifier.weight)
    assert capsys.readouterr() == ("", "")


def test_the_checkpoints_own_class(bert: Path) -> None:
    assert type(load_base(bert)).__name__ == "BertModel"


def test_dtypes(stories: Path) -> None:
    assert load_base(stories, CausalLM()).dtype == torch.float32
    assert load_base(stories, CausalLM(), "bf16").dtype == torch.bfloat16
    with pytest.raises(InputError, match="unknown dtype"):
        load_base(stories, CausalLM(), "int7")


def test_no_pad_token(stories: Path, tmp_path: Path) -> None:
    folder = copied(stories, tmp_path / "m")
    file = folder / "tokenizer_config.json"
    form = {k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}
    file.chmod(0o644)
    file.write_text(json.dumps(form))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token is not None
    size = len(tokenizer)
    model = load_base(folder, CausalLM())
    assert len(model.tokenizer) == size == model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id is not None


def broken(base: Path, folder: Path, how: str) -> Path:
    copied(base, folder, {"config": "config.json", "weights": "model.safetensors"}.get(how, ""))
    if how == "corrupt":
        (folder / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"nonsense")
    if how == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    if how == "code":
        form = json.loads((folder / "config.json").read_text()) | {
            "model_type": "mine",
            "auto_map": {"AutoConfig": "evil.C"},
        }
        (folder / "config.json").write_text(json.dumps(form))
        (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')")
    if how == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(tiny("bert").bert.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(("how", "says"), [
    ("config", "no config.json"), ("weights", "no model could be loaded"), ("corrupt", "damaged safetensors"),
    ("truncated", "damaged safetensors"), ("code", "no model could be loaded"), ("pickle", "no model could be loaded"),
])  # fmt: skip
def test_broken_folders(bert: Path, tmp_path: Path, how: str, says: str) -> None:
    folder = broken(bert, tmp_path / "m", how)
    with pytest.raises(InputError, match=says) as caught:
        load_base(folder, TASK)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"), [("/no/such/place", "no such folder"), ("nobody/nothing", "no model could be loaded")]
)
def test_missing(path: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_base(path, TASK)


def test_a_task_that_the_architecture_cannot_do(tmp_path: Path, bert: Path) -> None:
    """It is not the folder's fault: the tasks over the same rows that it can do are named."""
    import featherweight as fw

    tiny("t5").save_pretrained(tmp_path / "t5")
    said = r"t5: the model cannot do Choices; expected a decoder; got t5; of the tasks .* do .*seq2seqchoices"
    with pytest.raises(InputError, match=said):
        load_base(tmp_path / "t5", fw.Choices())
    with pytest.raises(InputError, match=r"cannot do Seq2Seq; expected an encoder-decoder; got bert; .*causallm"):
        load_base(bert, fw.Seq2Seq())


def test_a_checkpoint_of_another_model(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "m")
    form = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(form))
    with pytest.raises(InputError, match="lacks a tensor of the model") as caught:
        load_base(folder, TASK)
    assert len(caught.value.problems) == 16
    form |= {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(form))
    with pytest.raises(InputError, match="has a tensor that the model lacks"):
        load_base(folder, TASK)


def test_vocabularies_that_do_not_match(bert: Path, stories: Path) -> None:
    with pytest.raises(InputError, match="different vocabularies"):
        load_base(bert, TASK, tokenizer=load_tokenizer(stories))


def test_a_leftover_head_is_fine(tmp_path: Path, bert: Path) -> None:
    model: Any = tiny("bert")
    model.save_pretrained(tmp_path / "cls")
    load_tokenizer(bert).save_pretrained(tmp_path / "cls")
    assert load_base(tmp_path / "cls", TASK).new_tensors == []
