"""TRAINABLE_TOKENS files, both ways, tied and not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.checkpoint.files import CONFIG, WEIGHTS

Judge = Callable[[Any, Path], Any]
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
IDS = [40, 5, 14]


@pytest.mark.parametrize("arch", ["bert", "roberta", "gpt2", "llama", "neox", "phi3", "t5"])
def test_peft_reads_ours_and_it_comes_back(arch: str, tmp_path: Path, judge: Judge) -> None:
    model = fw.attach(tiny(arch), fw.Tokens(tokens=tuple(IDS)), head=False)
    disturb(model, 0.3)
    fw.save(model, tmp_path)
    assert torch.equal(logits(fw.load(tiny(arch), tmp_path), inputs(arch)), logits(model, inputs(arch)))
    theirs = judge(tiny(arch), tmp_path)
    wanted = logits(model.double(), inputs(arch))
    assert (wanted - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-4
    assert (wanted - logits(theirs.double(), inputs(arch))).abs().max() <= 1e-9


def written(arch: str, folder: Path, **fields: Any) -> Any:
    from peft import TrainableTokensConfig, get_peft_model

    theirs = get_peft_model(tiny(arch), TrainableTokensConfig(token_indices=IDS, **fields)).eval()
    disturb(theirs, 0.3)
    theirs.save_pretrained(str(folder))
    return theirs


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "t5"])
def test_we_read_pefts(arch: str, tmp_path: Path) -> None:
    theirs = written(arch, tmp_path)
    model = fw.load(tiny(arch), tmp_path)
    wanted = logits(theirs.double(), inputs(arch))
    assert (wanted - logits(tiny(arch).double(), inputs(arch))).abs().max() > 1e-4
    assert (logits(model.double(), inputs(arch)) - wanted).abs().max() <= 1e-10
    fw.save(model.float(), tmp_path / "again")
    ours, peers = load_file(tmp_path / "again" / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert sorted(ours) == sorted(peers)
    assert all(torch.equal(ours[k], peers[k]) for k in ours)


def test_rows_of_another_table_are_refused(tmp_path: Path) -> None:
    written("bert", tmp_path, target_modules=["position_embeddings"])
    with pytest.raises(fw.InputError, match=r"something else than the input embedding; got .*position_embeddings"):
        fw.load(tiny("bert"), tmp_path)


def test_tied_modules_cannot_disagree(tmp_path: Path) -> None:
    written("gpt2", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.lm_head.trainable_tokens_delta"] += 1
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(fw.InputError, match=r"lm_head\.trainable_tokens_delta: other rows than the module has"):
        fw.load(tiny("gpt2"), tmp_path)


def test_bad_json(tmp_path: Path) -> None:
    written("llama", tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"token_indices": "40"}))
    with pytest.raises(fw.InputError, match=r"token_indices: wrong type; expected list; got '40'"):
        fw.load(tiny("llama"), tmp_path)
