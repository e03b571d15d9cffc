"""The lecture's lines: `AutoPeftModelForCausalLM.from_pretrained(folder)` on an OPT, 50 tokens generated.

Both ways, for a base saved to disk: peft opens the folder we write by its own name of the base, and we open the one
that peft writes; tokens and the logits that they were chosen by are the same.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, tiny

import featherweight as fw

TOLD = {"max_new_tokens": 50, "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
        "return_dict_in_generate": True, "output_logits": True}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


def written(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens and their logits, (50, rows, vocabulary)."""
    ids = inputs("opt")["input_ids"][:, :6]
    said = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), **TOLD)
    assert said.sequences.shape[1] == 6 + 50
    return said.sequences, torch.stack(said.logits)


def alike(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and float((one[1] - other[1]).abs().max()) <= 1e-5


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny("opt").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_peft_opens_our_folder_by_itself(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local base is on record by its folder's name (no path of one machine): peft finds it from beside."""
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(base.parent)
    model = fw.attach(fw.load_base(str(base), fw.CausalLM()), fw.LoRA(rank=4))
    disturb(model)
    fw.save(model, tmp_path / "ours")
    said = written(model)
    assert not alike(written(fw.load_base(str(base), fw.CausalLM())), said)
    assert alike(written(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "ours"))), said)


def test_we_open_pefts_folder_by_itself(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), LoraConfig(r=4, task_type="CAUSAL_LM"))
    disturb(theirs, 0.2)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert alike(written(fw.load_model(tmp_path / "theirs")), written(theirs))
