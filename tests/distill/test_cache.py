"""A teacher's outputs on disk: computed once, equal to live ones, never those of something else, never half of one."""

import errno
import json
import os
import shutil
from copy import deepcopy
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.distilling import SIZE, WORDS, bert, llama, prompts

import featherweight as fw
from featherweight.core.errors import FeatherweightError, InputError
from featherweight.distill.cache import store as stores
from featherweight.distill.cache.coarse import Coarse, coarse
from featherweight.distill.cache.folder import opened
from featherweight.distill.cache.store import Store, Stream, table
from featherweight.distill.losses import generalized_jsd, kl, reverse_kl

RECIPES = [
    fw.KD(),
    fw.DistilBERT(),
    fw.TinyBERT("layers"),
    fw.TinyBERT("prediction"),
    fw.MiniLM(),
    fw.MiniLM(version=2),
]
QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def teacher(tokenizer: Any) -> Any:
    made = bert(**QUIET)
    made.tokenizer = tokenizer
    return made


def run(teacher: Any, rows: Any, recipe: Any, of: Any = None, **values: Any) -> list[float]:
    """The losses of every step of a student of two layers, the teacher's or those of a plain model `of`."""
    student = fw.student(of or teacher, layers=2)
    given = {"epochs": 2, "batch": 8, "lr": 1e-3, "log": 1, "seed": 3, **values}
    return [line["loss"] for line in fw.distill(student, teacher, rows, recipe, **given).history if "loss" in line]


class Counted:
    """How many rows a model's forward sees."""

    def __init__(self, model: Any):
        self.rows = 0
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, model: Any, args: Any, kwargs: Any) -> None:
        self.rows += len(kwargs["input_ids"])


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_losses_are_those_of_a_live_teacher(recipe: Any, teacher: Any, rows: Any, tmp_path: Path) -> None:
    live = run(teacher, rows, recipe)
    first = run(teacher, rows, recipe, cache=tmp_path / "c")
    again = run(teacher, rows, recipe, cache=tmp_path / "c")
    assert first == pytest.approx(live, rel=1e-5)
    assert again == first  # the same bytes


def test_a_row_is_the_same_row_in_any_batch(teacher: Any, rows: Any, tmp_path: Path) -> None:
    """Another batch size, another seed, no buckets: what was kept is found, and is what a live teacher shows."""
    run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    other = {"batch": 5, "seed": 11, "buckets": False}
    counted = Counted(teacher)
    kept = run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", **other)
    assert counted.rows == 1  # the one row that shows what the recipe reads
    assert kept == pytest.approx(run(teacher, rows, fw.DistilBERT(), **other), rel=1e-5)


@pytest.mark.parametrize("recipe", [fw.KD(), fw.DistilBERT()], ids=repr)
def test_the_second_epoch_costs_the_student_alone(recipe: Any, teacher: Any, rows: Any, tmp_path: Path) -> None:
    counted = Counted(teacher)
    run(teacher, rows, recipe, cache=tmp_path / "c", epochs=4)
    distinct = len({row["text"] for row in rows})
    assert counted.rows <= 1 + len(rows)
    assert counted.rows >= 1 + distinct
    without = Counted(teacher)
    run(teacher, rows, recipe, epochs=4)
    assert without.rows >= 4 * len(rows)


def test_language_models(tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    """Logits of trained positions alone are kept: the answer's, not the prompt's."""
    teacher = llama()
    teacher.tokenizer = tokenizer
    asked = [{"prompt": r["text"], "completion": " ".join(WORDS[i % 9 : i % 9 + 3])} for i, r in enumerate(rows)]
    live = run(teacher, asked, fw.KD())
    kept = run(teacher, asked, fw.KD(), cache=tmp_path / "c")
    assert kept == pytest.approx(live, rel=1e-5)
    distinct = len({(r["prompt"], r["completion"]) for r in asked})
    assert (tmp_path / "c" / "logits.bin").stat().st_size == distinct * 4 * SIZE * 4  # three words and the end


def test_an_encoder_beside_a_decoder(tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.T5Config(vocab_size=SIZE, d_model=32, d_ff=48, num_layers=4, num_heads=2, d_kv=16, dropout_rate=0.0,
                         pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)  # fmt: skip
    teacher = hf.T5ForConditionalGeneration(config).eval()
    teacher.tokenizer = tokenizer
    asked = [
        {"prompt": r["text"], "completion": " ".join(WORDS[i % 9 : i % 9 + 1 + i % 3])} for i, r in enumerate(rows)
    ]
    live = run(teacher, asked, fw.DistilBERT(), task=fw.Seq2Seq())
    kept = run(teacher, asked, fw.DistilBERT(), task=fw.Seq2Seq(), cache=tmp_path / "c")
    assert kept == pytest.approx(live, rel=1e-5)
    assert {"read.4.bin", "hidden.4.bin"} <= {p.name for p in (tmp_path / "c").iterdir()}


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_as_large(dtype: str, teacher: Any, rows: Any, tmp_path: Path) -> None:
    live = run(teacher, rows, fw.DistilBERT())
    sizes = []
    for name in ("fp32", dtype):
        kept = run(teacher, rows, fw.DistilBERT(), cache=fw.TeacherCache(tmp_path / name, dtype=name))
        sizes.append(sum(p.stat().st_size for p in (tmp_path / name).glob("[hl]*.bin")))
    assert kept == pytest.approx(live, rel=2e-2)
    assert sizes[0] == 2 * sizes[1]


# --- the most probable classes alone


@pytest.mark.parametrize("T", [1.0, 3.0])
def test_a_tail_in_one_is_a_lower_bound_and_tight_where_the_tail_agrees(T: float) -> None:
    torch.manual_seed(0)
    t = 3 * torch.randn(50, 200, dtype=torch.float64)
    s = t + 0.5 * torch.randn_like(t)
    before = torch.zeros(50, dtype=torch.float64)
    for k in (1, 5, 20, 100, 199):
        both = Coarse(**part(t, k, T)).against(s)
        for loss in (kl, reverse_kl, generalized_jsd):
            assert (loss(*both, temperature=T) <= loss(s, t, temperature=T) + 1e-9).all()
        now = kl(*both, temperature=T)
        assert (now >= before - 1e-9).all()  # a finer cut hides less
        before = now
    torch.testing.assert_close(now, kl(s, t, temperature=T))  # 199 and one more is all of them
    equal = Coarse(**part(t, 3, T)).against(t + 1)
    assert kl(*equal, temperature=T).abs().max() < 1e-12


def part(logits: torch.Tensor, k: int, T: float) -> dict[str, Any]:
    log_p, words = coarse(logits, k, T)
    return {"logits": log_p, "words": words, "T": T}


def test_the_rest_by_hand() -> None:
    """p = (1/2, 1/4, 1/8, 1/8), q uniform, k = 2: ½ ln 2 + ¼ ln 1 + ¼ ln ½ = ¼ ln 2."""
    t = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    s = torch.zeros(1, 4)
    both = Coarse(**part(t, 2, 1.0)).against(s)
    assert kl(*both).item() == pytest.approx(0.25 * numpy.log(2), rel=1e-6)
    assert kl(s, t).item() == pytest.approx(0.25 * numpy.log(2) + 0, rel=1e-6)  # the two eighths are alike


def test_most_probable_words_train_a_student(tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    teacher = llama()
    teacher.tokenizer = tokenizer
    texts = [{"text": row["text"]} for row in rows]
    recipe = fw.KD(alpha=1.0, temperature=2.0)
    live = run(teacher, texts, recipe)
    kept = {k: run(teacher, texts, recipe, cache=fw.TeacherCache(tmp_path / str(k), top=k)) for k in (4, SIZE - 1)}
    assert kept[SIZE - 1] == pytest.approx(live, rel=1e-4)
    assert kept[4][0] < live[0]
    with pytest.raises(InputError, match="no such number of classes; expected at most 23, or 0 for all; got 24"):
        run(teacher, texts, recipe, cache=fw.TeacherCache(tmp_path / "all", top=SIZE))
    with pytest.raises(InputError, match="made with another temperature"):
        run(teacher, texts, fw.KD(alpha=1.0, temperature=3.0), cache=fw.TeacherCache(tmp_path / "4", top=4))


# --- what it is of


def changed_teacher(teacher: Any, rows: Any) -> Any:
    other = deepcopy(teacher)
    other.tokenizer = teacher.tokenizer
    with torch.no_grad():
        other.classifier.weight[0, 0] += 1e-3
    return {"teacher": other}


def changed_adapter(teacher: Any, rows: Any) -> Any:
    plain = deepcopy(teacher)
    plain.tokenizer = teacher.tokenizer
    fw.attach(teacher, fw.LoRA(rank=2), train=False)
    return {"teacher": teacher, "of": plain}


def changed_config(teacher: Any, rows: Any) -> Any:
    other = deepcopy(teacher)
    other.tokenizer = teacher.tokenizer
    other.config.layer_norm_eps = 1e-3
    return {"teacher": other}


CHANGES = {
    "another teacher": changed_teacher,
    "another teacher (adapter)": changed_adapter,
    "another teacher (config)": changed_config,
    "another rows": lambda teacher, rows: {"rows": [{**rows[0], "text": "thai thai thai"}, *rows[1:]]},
    "another rows (more)": lambda teacher, rows: {"rows": [*rows, {"text": "thai inn", "label": "no"}]},
    "another kept": lambda teacher, rows: {"recipe": fw.MiniLM()},
    "another precision": lambda teacher, rows: {"precision": "bf16"},
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_cache_of_something_else_is_refused(what: str, teacher: Any, rows: Any, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "c", fw.DistilBERT()
    run(teacher, rows, recipe, cache=folder, epochs=1)
    now = {"teacher": teacher, "rows": rows, "recipe": recipe, **CHANGES[what](teacher, rows)}
    with pytest.raises(InputError, match=f"made with {what.split(' (')[0]}.*recompute"):
        run(**now, cache=folder, epochs=1)
    anew = run(**now, cache=fw.TeacherCache(folder, changed="recompute"), epochs=1)
    assert anew == pytest.approx(run(**now, epochs=1), rel=1e-5)


def test_another_tokenizer_is_refused(teacher: Any, rows: Any, tmp_path: Path) -> None:
    run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)
    teacher.tokenizer = deepcopy(teacher.tokenizer)
    teacher.tokenizer.add_tokens(["<new>"])
    teacher.resize_token_embeddings(len(teacher.tokenizer))
    with pytest.raises(InputError, match="made with another tokenizer"):
        run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)


def test_what_does_not_matter_may_change(teacher: Any, rows: Any, tmp_path: Path) -> None:
    """Order, labels, settings of the student's training, the temperature of whole logits."""
    run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)
    counted = Counted(teacher)
    flipped = [{**row, "label": "no" if row["label"] == "yes" else "yes"} for row in rows[::-1]]
    run(teacher, flipped, fw.KD(temperature=5.0, alpha=0.9), cache=tmp_path / "c", lr=1e-4)
    assert counted.rows == 1


def test_a_model_that_teaches_itself(teacher: Any, rows: Any, tmp_path: Path) -> None:
    """The bare base teaches an adapter on it: what trains is no part of the cache's key, what teaches is."""
    model = deepcopy(teacher)
    model.tokenizer = teacher.tokenizer
    given: dict[str, Any] = {"method": fw.LoRA(rank=2), "epochs": 2, "batch": 8, "lr": 1e-2, "log": 1}
    losses = []
    for number, cache in enumerate((None, tmp_path / "c", tmp_path / "c")):
        history = fw.distill(model, None, rows, fw.KD(), name=f"n{number}", cache=cache, **given).history
        losses.append([line["loss"] for line in history if "loss" in line])
        fw.switch(model, None)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == losses[1]
    fw.attach(model, fw.LoRA(rank=2, init="gaussian"), "other", train=False)
    fw.switch(model, None)
    with pytest.raises(InputError, match="made with another teacher"):
        fw.distill(model, "other", rows, fw.KD(), name="last", cache=tmp_path / "c", **given)


def test_what_the_teacher_alone_reads_counts(tokenizer: Any, tmp_path: Path) -> None:
    writer = llama()
    writer.tokenizer = tokenizer
    live = run(writer, prompts(), fw.KD(), context="warm cold ")
    assert run(writer, prompts(), fw.KD(), context="warm cold ", cache=tmp_path / "c") == pytest.approx(live, rel=1e-5)
    with pytest.raises(InputError, match="made with another teacher"):
        run(writer, prompts(), fw.KD(), context="warm slow ", cache=tmp_path / "c")


# --- crashes, damage, disks


class Crash(Exception):
    pass


def test_what_was_finished_before_a_crash_stays(teacher: Any, rows: Any, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Killed between the numbers of a row and its checksum, the row is not there; all before it are."""
    whole, calls = stores.whole, []

    def dying(handle: int, data: bytes, at: int) -> None:
        calls.append(at)
        if len(calls) > 20:
            os.pwrite(handle, data[: len(data) // 2], at)
            raise Crash
        whole(handle, data, at)

    monkeypatch.setattr(stores, "whole", dying)
    with pytest.raises(Crash):
        run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    monkeypatch.undo()
    there = int(numpy.count_nonzero(numpy.fromfile(tmp_path / "c" / "done.bin", "<u4")))
    assert there == 10  # two streams a row
    counted = Counted(teacher)
    kept = run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    assert counted.rows <= 1 + len(rows) - there
    assert kept == pytest.approx(run(teacher, rows, fw.DistilBERT(), epochs=1), rel=1e-5)


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"bit": data[:40] + bytes([data[40] ^ 1]) + data[41:], "cut": data[: len(data) // 2],
                      "gone": b""}[how])  # fmt: skip


@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
@pytest.mark.parametrize("name", ["hidden.4.bin", "done.bin"])
def test_damaged_rows_are_told_of_and_computed_again(name: str, how: str, teacher: Any, rows: Any, tmp_path: Path,
                                                     capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    first = run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    damaged(tmp_path / "c" / name, how)
    capfd.readouterr()
    counted = Counted(teacher)
    assert run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1) == pytest.approx(first, rel=1e-5)
    said = capfd.readouterr().err
    assert ("a damaged row of the teacher cache is computed again" if how == "bit" else "that are not whole") in said
    assert 2 <= counted.rows <= (3 if how == "bit" else 1 + len(rows))
    after = Counted(teacher)
    run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    assert after.rows == 1


def test_a_damaged_manifest(teacher: Any, rows: Any, tmp_path: Path) -> None:
    run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)
    (tmp_path / "c" / "manifest.json").write_text('{"schema": 1, "ab')
    with pytest.raises(InputError, match=r"manifest\.json: the manifest of the teacher cache is damaged.*recompute"):
        run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)
    (tmp_path / "c" / "manifest.json").unlink()  # a crash before it was written: begun again
    run(teacher, rows, fw.KD(), cache=tmp_path / "c", epochs=1)
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["schema"] == 1


def test_a_folder_of_something_else(teacher: Any, rows: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else than a teacher cache; got thesis\.tex"):
        run(teacher, rows, fw.KD(), cache=fw.TeacherCache(tmp_path, changed="recompute"))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the teacher cache cannot be written"):
        run(teacher, rows, fw.KD(), cache=tmp_path / "file")


def test_its_size_is_said_and_a_full_disk_is_found_out_at_once(teacher: Any, rows: Any, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch,
                                                               capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "c", epochs=1)
    said = capfd.readouterr().err
    distinct = len({row["text"] for row in rows})
    tokens = sum(len(text.split()) for text in {row["text"] for row in rows})
    size = sum(p.stat().st_size for p in (tmp_path / "c").glob("*.bin"))
    assert size == tokens * 32 * 4 + distinct * (2 * 4 + 4 + 24)
    assert f"teacher cache: {size / 1000:.3g} KB" in said
    assert f"{distinct} rows (hidden.4: 128 B a token; logits: 8 B a unit)" in said

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=1000))
    with pytest.raises(
        InputError, match=r"there is no room for the teacher cache; expected .* free; got 1 KB; another folder"
    ):
        run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "d")
    assert not list((tmp_path / "d").glob("*.bin"))
    monkeypatch.undo()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="there is no room for the teacher cache"):
        run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "d")
    assert not list((tmp_path / "d").glob("*.bin"))
    monkeypatch.undo()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(FeatherweightError, match=r"cannot be written .*No space left"):
        run(teacher, rows, fw.DistilBERT(), cache=tmp_path / "d")


# --- together


STREAMS = (Stream("x", "unit", 5, "fp32"), Stream("y", "token", 3, "int32"))


def content(row: int, tokens: int) -> dict[str, bytes]:
    return {"x": numpy.full(5, row, "<f4").tobytes(), "y": numpy.full(3 * tokens, row, "<i4").tobytes()}


def filling(folder: str, seed: int) -> None:
    store = small(folder)
    order = numpy.random.default_rng(seed).permutation(len(store))
    for row in order:
        if not store.has(row):
            store.write({int(row): content(int(row), int(store.count["token"][row]))})


def small(folder: str) -> Store:
    rows = table({bytes([i]) * 16: (1, 1 + i % 4) for i in range(200)})
    return opened(Path(folder), {"teacher": "t"}, rows, STREAMS, False, lambda text: None)


def test_several_processes_fill_one_cache(tmp_path: Path) -> None:
    context = get_context("fork")
    workers = [context.Process(target=filling, args=(str(tmp_path / "c"), seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    store = small(str(tmp_path / "c"))
    for row in range(200):
        assert store.has(row)
        assert (store.read(STREAMS[0], row) == row).all()
        assert store.read(STREAMS[1], row).tolist() == [[row] * 3] * (1 + row % 4)


def test_rows_do_not_overlap(tmp_path: Path) -> None:
    store = small(str(tmp_path / "c"))
    for s in STREAMS:
        ends = [(int(store.start[s.per][i]), int(store.start[s.per][i + 1])) for i in range(200)]
        assert all(a[1] == b[0] for a, b in pairwise(ends))
    with pytest.raises(FeatherweightError, match="y of a row has 12 bytes in place of 24"):
        store.write({1: content(1, 1)})
    assert not store.has(1)


# --- runs that have nothing to keep


def test_runs_without_anything_to_keep(teacher: Any, tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    writer = llama()
    writer.tokenizer = tokenizer
    texts = [{"text": row["text"]} for row in rows]
    with pytest.raises(InputError, match="what the student writes is new at every step"):
        run(writer, texts, fw.GKD(), cache=tmp_path / "c")
    run(writer, texts, fw.GKD(on_policy=0.0), cache=tmp_path / "c")
    with pytest.raises(InputError, match="packed rows have no outputs of their own"):
        run(writer, texts, fw.KD(), cache=tmp_path / "d", packing=True)


def test_hidden_tokens_are_drawn_anew(tokenizer: Any, rows: Any, tmp_path: Path) -> None:
    teacher = bert(masked=True)
    teacher.tokenizer = tokenizer
    texts = [{"text": row["text"]} for row in rows]
    with pytest.raises(InputError, match="the task changes its rows at every step"):
        run(teacher, texts, fw.DistilBERT(), task=fw.MaskedLM(), cache=tmp_path / "c")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "fp8"}, "cache.dtype: unknown dtype; got 'fp8'; choose from fp32, bf16, fp16"),
    ({"changed": "recomput"}, "cache.changed: unknown changed; got 'recomput'; did you mean 'recompute'"),
    ({"top": -1}, "cache.top: no number of classes"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_bad_options(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fw.TeacherCache("c", **given)
