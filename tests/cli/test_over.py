"""A fusion whose parts lie elsewhere: every command finds them by --over, and says what does not fit."""

import shutil

import pytest

import featherweight as fw_api
from featherweight.checkpoint.save import save

TASK = fw_api.Classification(labels=("no", "yes"))


@pytest.fixture(scope="module")
def fused(bert, table, tmp_path_factory):
    """The folder of a trained fusion without its parts, and what --over says of these."""
    from featherweight.cli.main import main

    place = tmp_path_factory.mktemp("fused")
    for name in ("a", "b"):
        part = fw_api.attach(fw_api.load_base(bert, TASK), fw_api.Pfeiffer(bottleneck=4), name=name)
        save(part, place / name, name)
    over = f"a={place / 'a'},b={place / 'b'}"
    argv = ["train", "--model", bert, "--data", table, "--method", "fusion", "--method.of", "a,b", "--over", over,
            "--steps", 2, "--output", place / "out"]  # fmt: skip
    assert main([str(a) for a in argv]) == 0
    shutil.copytree(place / "out", place / "bare")
    for name in ("a", "b"):
        shutil.rmtree(place / "bare" / name)
    return place / "bare", place / "out", over


def test_eval_and_predict_over_parts_elsewhere(fw, fused, table):
    bare, whole, over = fused
    given = ["--data", table, "--json"]
    there = fw("eval", "--adapter", whole, *given).json
    assert fw("eval", "--adapter", bare, "--over", over, *given).json["loss"] == there["loss"]
    rows = fw("predict", "--adapter", whole, *given).json["rows"]
    assert fw("predict", "--adapter", bare, "--over", over, *given).json["rows"] == rows
    refused = fw("eval", "--adapter", bare, *given)
    assert (refused.code, "over=a=FOLDER" in refused.err) == (2, True)


def test_compare_over_parts_elsewhere(fw, fused, bert, table, tmp_path):
    bare, whole, over = fused
    other = tmp_path / "test.csv"
    shutil.copy(table, other)
    found = fw("compare", bert, table, other, "--adapter", bare, "--over", over, "--json").json["lines"]
    plain = fw("compare", bert, table, other, "--adapter", whole, "--json").json["lines"]
    assert [line["score"] for line in found] == [line["score"] for line in plain]
    wrong = fw("compare", bert, table, other, "--adapter", bare, "--over", f"{over},c=x")
    assert (wrong.code, "over.c: no adapter works over it" in wrong.err) == (2, True)


def test_a_fusion_is_planned_over_its_parts(fw, fused, bert, table):
    """By its flags, and from its folder; as many parameters train as in the run."""
    bare, whole, over = fused
    form = ["--method", "fusion", "--method.of", "a,b", "--over", over, "--data", table]
    found = fw("plan", bert, *form, "--json").json
    assert found["trainable"] == fw_api.trainable(fw_api.load_model(whole, train=True)).trainable
    for words in (["--from", whole], ["--from", bare, "--over", over]):
        again = fw("plan", *words, "--data", table, "--json").json
        assert (again["trainable"], again["train_bytes"]) == (found["trainable"], found["train_bytes"])
    assert fw("plan", "--from", bare, "--data", table).code == 2


def test_what_over_cannot_be(fw, fused, adapter, bert, table):
    _, _, over = fused
    given = ["--data", table, "--over", over]
    said = fw("eval", "--adapter", adapter, *given)
    assert (said.code, "over.a: the adapter works over no such one" in said.err) == (2, True)
    said = fw("eval", "--model", bert, *given)
    assert (said.code, "--over: over is for an adapter" in said.err) == (2, True)
    said = fw("eval", "--adapter", adapter, "--data", table, "--over", "a")
    assert (said.code, "--over: not a pair" in said.err) == (2, True)


def test_a_run_without_its_head_is_planned_without_it(fw, bert, table, tmp_path):
    model = fw_api.load_base(bert, TASK)
    fw_api.attach(model, fw_api.LoRA(), head=False)
    fw_api.train(model, table, output=tmp_path / "out", steps=1)
    found = fw("plan", "--from", tmp_path / "out", "--json").json
    assert found["trainable"] == fw_api.trainable(fw_api.load_model(tmp_path / "out", train=True)).trainable
    assert found["trainable"] < fw("plan", bert, "--task", "classification", "--json").json["trainable"]


def test_a_run_that_goes_on_has_a_limit_too(fw, adapter, table, tmp_path):
    words = ["train", "--from", adapter, "--data", table, "--steps", 1, "--output", tmp_path / "out", "--limit"]
    refused = fw(*words, "1kB")
    assert (refused.code, "needs more memory than its limit" in refused.err) == (2, True)
    done = fw(*words, "1GB")
    assert done.code == 0, done.err
