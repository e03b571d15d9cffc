"""Files are whole or they are an error; a write leaves all or nothing; no pickle."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.models import disturb, tiny

from featherweight.checkpoint.files import WEIGHTS, read_json, read_tensors, through, write_json, write_tensors
from featherweight.checkpoint.load import load
from featherweight.checkpoint.save import save
from featherweight.core.attach import attach
from featherweight.core.errors import InputError
from featherweight.methods import LoRA

GOOD = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_there_and_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "new" / "w.safetensors", GOOD, {"k": "v"})
    tensors, metadata = read_tensors(tmp_path / "new" / "w.safetensors")
    assert metadata == {"format": "pt", "k": "v"}
    assert all(torch.equal(tensors[k], GOOD[k]) and tensors[k].dtype == GOOD[k].dtype for k in GOOD)
    assert os.listdir(tmp_path / "new") == ["w.safetensors"]


def test_equal_bytes_every_time(tmp_path: Path) -> None:
    """The library writes metadata in random order."""
    info = {f'key "{i}" é': f"value\\{i}" for i in range(9)}
    for number in range(8):
        write_tensors(tmp_path / f"{number}", GOOD, info)
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(8)}) == 1
    tensors, metadata = read_tensors(tmp_path / "0")
    assert metadata == {"format": "pt"} | info
    assert all(torch.equal(tensors[k], GOOD[k]) for k in GOOD)


def test_views_and_shared_memory(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "w.safetensors", {"a": whole[:, 1], "b": whole, "c": whole.T}, {})
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["a"], whole[:, 1])
    assert torch.equal(tensors["c"], whole.T)


@pytest.mark.parametrize("damage", [
    lambda raw: raw[: len(raw) - 3], lambda raw: raw[:5], lambda raw: b"", lambda raw: b"\xff" * 8 + raw[8:],
    lambda raw: raw[:8] + b"}" + raw[9:], lambda raw: raw + b"more",
])  # fmt: skip
def test_damaged(tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "w.safetensors"
    write_tensors(file, GOOD, {})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="not a whole safetensors file") as caught:
        read_tensors(file)
    assert str(file) in str(caught.value)


def test_values_that_are_no_parameters(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    bad = {"nan": torch.tensor([1.0, float("nan")]), "inf": torch.tensor(float("inf")), "int": torch.arange(3)}
    save_file(GOOD | bad, file)
    with pytest.raises(InputError) as caught:
        read_tensors(file)
    assert [p.where for p in caught.value.problems] == ["w.safetensors:inf", "w.safetensors:int", "w.safetensors:nan"]
    with pytest.raises(InputError, match=r"w2\.safetensors:nan: values that are not finite; got 1 of 2"):
        write_tensors(tmp_path / "w2.safetensors", {"nan": bad["nan"]}, {})
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adapter_model.bin")
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(InputError, match=r"adapter_model\.bin: weights are a pickle, which is never read.*save_file"):
        load(tiny("bert"), tmp_path)


@pytest.mark.parametrize(("text", "says"), [
    ("{", r"c\.json:1:2: not JSON"), ("[]", "not a JSON object; got list"), ('{\n"a": }', r"c\.json:2:6: not JSON"),
])  # fmt: skip
def test_bad_json(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=says):
        read_json(tmp_path / "c.json")


def test_no_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; got no such folder"):
        load(tiny("bert"), tmp_path / "none")
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(InputError, match=r"a folder with note\.txt"):
        load(tiny("bert"), tmp_path)


def adapted() -> Any:
    return attach(tiny("bert"), LoRA(rank=2))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("step", ["put", "sync"])
@pytest.mark.parametrize("at", ["adapter_model", "adapter_config"])
@pytest.mark.parametrize(
    ("number", "says"), [(28, "No space left on device"), (30, "Read-only file system"), (122, "quota")]
)
def test_a_folder_that_takes_no_file(
    at: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """The disk fills while the tensors are written, or nothing may be written: the adapter from before is whole."""
    model = adapted()
    save(model, tmp_path)
    before = snapshot(tmp_path)

    def full(path: str, *_: Any) -> None:
        if at in path:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"featherweight.checkpoint.files.{step}", full)
    disturb(model)
    with pytest.raises(InputError, match=f"(?i){says}.*nothing was changed"):
        save(model, tmp_path, durable=step == "sync")
    assert snapshot(tmp_path) == before


def test_a_durable_write_reaches_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files and the folder are fsynced, the files while they still have temporary names; a plain write waits for
    none."""
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "featherweight.checkpoint.files.sync", lambda path: synced.append((path, (tmp_path / WEIGHTS).exists()))
    )
    save(adapted(), tmp_path, durable=True)
    assert [Path(path).name.split(".")[1:2] for path, _ in synced[:2]] == [["adapter_model"], ["adapter_config"]]
    assert [exists for _, exists in synced] == [False, False, True, True]
    assert {path for path, _ in synced[2:]} == {str(tmp_path)}
    synced.clear()
    save(adapted(), tmp_path)
    assert not synced


def test_the_same_file_as_the_library_writes(tmp_path: Path) -> None:
    """Tensors of every dtype, of no and of zero size: byte for byte what safetensors itself writes."""
    tensors = {
        f"{name}.{dtype}".replace("torch.", ""): torch.randn(shape).to(dtype)
        for dtype in (torch.float16, torch.float32, torch.bfloat16, torch.float64)
        for name, shape in [("b", (3, 2)), ("a", (5,)), ("one", ()), ("none", (0, 4))]
    }
    write_tensors(tmp_path / "ours", tensors, {})
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_large_values_are_no_infinity(tmp_path: Path) -> None:
    """Their sum overflows; they do not."""
    large = {"w": torch.full((8,), 3e38), "h": torch.full((4,), 6e4, dtype=torch.float16)}
    write_tensors(tmp_path / "w", large, {})
    assert all(torch.equal(t, large[k]) for k, t in read_tensors(tmp_path / "w")[0].items())


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="cannot be written"):
        save(adapted(), tmp_path / "out" / "a")
    assert (tmp_path / "out").read_text() == "mine"


def fill(path: Path) -> None:
    from featherweight.checkpoint.files import writing

    with writing(path), open(path, "w") as file:
        file.write("x" * 100_000)


def test_a_real_full_disk() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        fill(Path("/dev/full"))


def test_files_are_as_public_as_others(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {})
    (tmp_path / "b.json").write_text("{}")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_what_the_system_does_in_pieces_is_whole(tmp_path: Path) -> None:
    """A call of the system may do less than it was given, and takes a thousand buffers at most."""
    tensors = {f"t{i:04}": torch.arange(float(i % 5)) + i for i in range(1500)}
    write_tensors(tmp_path / "many", tensors, {})
    read, _ = read_tensors(tmp_path / "many")
    assert all(torch.equal(read[k], t) for k, t in tensors.items())
    parts, written = [b"abcd", bytearray(b"ef"), b"", torch.arange(3, dtype=torch.int16).numpy()], bytearray()

    def three(handle: int, left: Sequence[Any]) -> int:
        taken = b"".join(map(bytes, left))[:3]
        written.extend(taken)
        return len(taken)

    through(three, 0, parts)
    assert bytes(written) == b"abcdef" + parts[-1].tobytes()
    with pytest.raises(OSError, match="12 bytes short"):
        through(lambda handle, left: 0, 0, parts)


def test_tensors_read_are_no_view_of_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", GOOD, {})
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    with (tmp_path / "w.safetensors").open("r+b") as file:
        file.truncate(10)
    assert all(torch.equal(tensors[k], GOOD[k]) for k in GOOD)


def test_every_dtype_of_the_library_is_read(tmp_path: Path) -> None:
    """Those that are no parameters are named, those that numpy has not are read whole."""
    odd = {"a": torch.ones(3).to(torch.float8_e4m3fn), "b": torch.tensor([True]), "z": torch.tensor(1.5)}
    save_file(odd, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        read_tensors(tmp_path / "w.safetensors")
    assert [p.where for p in caught.value.problems] == ["w.safetensors:a", "w.safetensors:b"]
    assert [p.got for p in caught.value.problems] == ["float8_e4m3fn", "bool"]
