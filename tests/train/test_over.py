"""A method that works over other adapters: they are loaded first, stay as they are, and go with it wherever it goes."""

from shutil import copytree, rmtree

import pytest
import torch

import featherweight as fw
from featherweight.checkpoint.save import save
from featherweight.core.errors import InputError
from featherweight.core.state import state
from featherweight.core.switch import switch_of


@pytest.fixture(scope="module")
def base(make, tokenizer, tmp_path_factory):
    """The folder of a base, and of two trained bottlenecks on it."""
    place = tmp_path_factory.mktemp("over")
    make("bert", num_labels=2).save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name in ("a", "b"):
        model = fw.load_base(place / "base")
        fw.attach(model, fw.Pfeiffer(bottleneck=4), name=name, head=False)
        with torch.no_grad():
            torch.manual_seed(ord(name))
            for tensor in state(model, name).values():
                tensor.add_(torch.randn_like(tensor) * 0.1)
        save(model, place / name, name)
    return place


def fused(base, rows, output, **values):
    given = {"steps": 4, "lr": 1e-2, "over": {"a": base / "a", "b": base / "b"}} | values
    return fw.train(str(base / "base"), rows, fw.Classification(), method=fw.Fusion(of=("a", "b")), output=output,
                    **given)  # fmt: skip


def test_the_parts_stay_and_go_along(base, class_rows, tmp_path):
    """The folder is whole: without those it was made of, it gives what the model gave that trained."""
    fused(base, class_rows, tmp_path / "out")
    again = fw.load_model(tmp_path / "out")
    assert set(switch_of(again).attached) == {"a", "b", "default"}
    assert switch_of(again).active == ("default",)
    for name in ("a", "b"):
        alone = fw.load(fw.load_base(base / "base"), base / name, name)
        assert all(torch.equal(t, state(again, name)[key]) for key, t in state(alone, name).items())
    with fw.switch(again, "a"):
        one = fw.predict(again, ["good food"])[0]["probability"]
    assert fw.predict(again, ["good food"])[0]["probability"] != one


def test_a_cut_run_goes_on_over_the_same_parts(base, class_rows, tmp_path):
    fused(base, class_rows, tmp_path / "whole", checkpoint_every=2)
    copytree(tmp_path / "whole", tmp_path / "cut")
    rmtree(tmp_path / "cut" / "checkpoints" / "step-4")
    swapped = {"a": base / "b", "b": base / "a"}
    with pytest.raises(InputError, match=r"over\.a: changed since the run began"):
        fused(base, class_rows, tmp_path / "cut", checkpoint_every=2, resume=True, over=swapped)
    fused(base, class_rows, tmp_path / "cut", checkpoint_every=2, resume=True)
    files = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert files[0] == files[1]


def test_what_is_wrong_with_the_parts_is_said_at_once(base, class_rows, make, tokenizer, tmp_path):
    other = fw.attach(make("bert", num_labels=2, hidden_size=16), fw.Pfeiffer(bottleneck=4), name="b", head=False)
    save(other, tmp_path / "b", "b")
    with pytest.raises(InputError) as error:
        fused(base, class_rows, tmp_path / "out", over={"a": tmp_path / "nowhere", "b": tmp_path / "b"})
    said = str(error.value).splitlines()
    assert len(said) == 2
    assert f"{tmp_path / 'nowhere'}" in said[0]
    assert said[1].startswith(f"over.b: {tmp_path / 'b'}: the adapter belongs to another base")
    with pytest.raises(InputError, match=r"got 'a'; load it first: fw.load, or over=a=FOLDER"):
        fused(base, class_rows, tmp_path / "out", over=None)


def test_a_load_that_fails_leaves_no_part_behind(base, class_rows, tmp_path):
    fused(base, class_rows, tmp_path / "out")
    (tmp_path / "out" / "b" / "adapter_model.safetensors").unlink()
    model = fw.load_base(base / "base", fw.Classification(labels=("no", "yes")))
    with pytest.raises(InputError, match=r"b.adapter_model.safetensors"):
        fw.load(model, tmp_path / "out")
    assert not switch_of(model).attached
