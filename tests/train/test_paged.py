"""Paged optimizer states: equal bits, resumption, a spike that does not fit without them, and what disks do."""

import errno
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from support.large import FRESH
from torch import nn

import featherweight as fw
from featherweight.core.errors import FeatherweightError, InputError
from featherweight.methods import LoRA
from featherweight.train import optimizers, paged
from featherweight.train import run as verb
from featherweight.train.loop import Loop

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Everything is worth a page, and chunks hold a few tensors; no pictures."""
    monkeypatch.setattr(paged, "LEAST", 1)
    for home in (paged.PageFile, paged.HostMemory):
        monkeypatch.setattr(home, "chunk", 2000)
    monkeypatch.setattr(verb, "curve", lambda *_: [])


@pytest.fixture
def disk(tmp_path):
    if paged.in_memory(tmp_path):
        pytest.skip(f"{tmp_path} is not on a disk: set TMPDIR")
    return tmp_path


class Three(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(40, 30, dtype=dtype)), nn.Parameter(torch.randn(7, 5, dtype=dtype))
        self.v, self.still = nn.Parameter(torch.randn(4, dtype=dtype)), nn.Parameter(torch.randn(3, dtype=dtype))


def step(optimizer, module, seed):
    torch.manual_seed(seed)
    for p in (module.a, module.b, module.v):  # `still` never gets a gradient
        p.grad = torch.randn_like(p)
    optimizer.step()


def made(name, module, home=None):
    return optimizers.optimizer(name, [(LoRA(), {"": module})], 1e-2, 0.1, home)


def homes(folder):
    return [paged.PageFile(folder), paged.HostMemory(CPU)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_updates_are_equal_to_the_bit(name, dtype, disk):
    plain = Three(dtype)
    first = made(name, plain)
    for s in range(4):
        step(first, plain, s)
    for home in homes(disk):
        other = Three(dtype)
        second = made(name, other, home)
        for s in range(4):
            step(second, other, s)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
        names = [{id(p): n for n, p in m.named_parameters()} for m in (plain, other)]
        then, now = optimizers.state_of(first, names[0]), optimizers.state_of(second, names[1])
        assert then.keys() == now.keys()
        assert all(torch.equal(t, now[k]) for k, t in then.items())
        assert second.param_groups[0]["params"], "the groups are whole again"


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_states_lie_in_the_file_and_leave_memory_between_steps(name, disk):
    module, home = Three(), paged.PageFile(disk)
    optimizer = made(name, module, home)
    step(optimizer, module, 0)
    held = [t for state in optimizer.state.values() for t in state.values()]
    assert held
    assert all(hasattr(t, "paged") for t in held)
    assert home.size == os.fstat(home.handle).st_size // 4096 * 4096 + 4096
    assert list(disk.iterdir()) == []  # the file has no name: nothing is left, however the process ends


def test_a_checkpoint_goes_either_way_between_paged_and_plain(disk):
    whole = Three()
    first = made("adamw", whole)
    for s in range(3):
        step(first, whole, s)
    names = {id(p): n for n, p in whole.named_parameters()}
    saved = {k: t.clone() for k, t in optimizers.state_of(first, names).items()}
    module = Three()
    module.load_state_dict(whole.state_dict())
    second = made("adamw", module, paged.PageFile(disk))
    optimizers.load_state(second, {id(p): n for n, p in module.named_parameters()}, saved)
    assert all(hasattr(t, "paged") for state in second.state.values() for t in state.values())
    for s in range(3, 6):
        step(first, whole, s)
        step(second, module, s)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))


class Cut(Exception):
    """The power went off."""


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)], ids=["paged", "then paged", "then not"])
def test_a_run_cut_and_resumed_ends_with_the_bits_of_a_plain_one(
    parts, make, tokenizer, lm_rows, split, disk, monkeypatch
):
    def train(folder, **values):
        verb.train(make("llama"), split(lm_rows, 8), output=disk / folder, tokenizer=tokenizer, batch=8, lr=1e-2,
                   method=fw.LoRA(rank=4, targets="linear"), steps=6, checkpoint_every=1, **values)  # fmt: skip
        return (disk / folder / "adapter_model.safetensors").read_bytes()

    def dying(self, *given):
        if self.progress.step == 3:
            raise Cut
        return real(self, *given)

    expected, real = train("whole"), Loop.advance
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", dying)
        with pytest.raises(Cut):
            train("cut", paged=parts[0])
    assert train("cut", paged=parts[1], resume=True) == expected


SPIKE = textwrap.dedent("""
    import resource, sys
    import torch, transformers as tf
    import featherweight as fw
    from featherweight.data.load import load
    from featherweight.train.loop import Loop

    torch.set_num_threads(1)
    config = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=4, vocab_size=23)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**config, max_position_embeddings=32, bos_token_id=None))
    tokenizer = tf.AutoTokenizer.from_pretrained(sys.argv[3])
    fw.attach(model, fw.Full())

    def used():
        return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("VmData"))

    real = Loop.run

    def limited(self):  # 72 MB of weights are trained: as much for their gradients, twice as much for AdamW's states
        resource.setrlimit(resource.RLIMIT_DATA, (used() + (150 << 20), -1))
        real(self)

    Loop.run = limited
    rows = load([{"prompt": "good food", "completion": "good"}] * 8)
    run = fw.train(model, rows, fw.CausalLM(), tokenizer=tokenizer, batch=4, steps=2, output=sys.argv[2],
                   paged=sys.argv[1] == "paged")
    print(run.steps, run.trainable, used())
""")


def spike(kind, output, words):
    environment = os.environ | FRESH | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SPIKE, kind, str(output), str(words)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_run_fits_that_otherwise_does_not(disk, tokenizer):
    """Full fine-tuning of 19 million weights under a limit on the process's own memory that its gradients fit into and
    its optimizer's states do not. The checkpoint, with the states in it, is written under the limit too."""
    tokenizer.save_pretrained(disk / "words")
    both = {kind: spike(kind, disk / kind, disk / "words") for kind in ("plain", "paged")}
    told = {kind: (*process.communicate(timeout=120), process.returncode) for kind, process in both.items()}
    assert told["paged"][2] == 0, told["paged"][1]
    assert told["paged"][0].split()[0] == "2"
    assert told["plain"][2] == 1
    assert "FeatherweightError: no memory left for the update: AdamW keeps states beside" in told["plain"][1]
    assert "paged=True keeps states on disk" in told["plain"][1]
    states = disk / "paged/checkpoints/step-2/optimizer.safetensors"
    assert states.stat().st_size > 140 << 20
    assert sorted(p.name for p in (disk / "paged").iterdir() if p.name.startswith(".")) == []


def test_a_full_disk_says_so_and_not_by_a_signal(disk):
    """A limit on the size of files that the kernel enforces: the write itself fails."""
    import resource
    import signal

    home, before = paged.PageFile(disk), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        home.keep(torch.ones(1000))
        with pytest.raises(
            FeatherweightError, match=r"the optimizer's states cannot be paged, the disk failed \(File too"
        ):
            home.keep(torch.ones(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_no_space_and_a_read_only_folder_are_told(disk, monkeypatch):
    def broken(code):
        def call(*_, **__):
            raise OSError(code, os.strerror(code))

        return call

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", broken(errno.EROFS))
        with pytest.raises(
            InputError, match="no file for paged optimizer states can be made; got the file system is re"
        ):
            paged.PageFile(disk)
    with pytest.raises(InputError, match="can be made"):
        paged.PageFile(disk / "missing")
    module = Three()
    optimizer = made("adamw", module, paged.PageFile(disk))
    groups = optimizer.param_groups
    monkeypatch.setattr(os, "pwrite", broken(errno.ENOSPC))
    with pytest.raises(FeatherweightError, match=r"cannot be paged, the disk is full .* at 4 bytes"):
        step(optimizer, module, 0)
    assert optimizer.param_groups is groups


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no memory file system to try")
def test_a_folder_in_memory_is_refused():
    with pytest.raises(InputError, match="paged states would lie in memory"):
        paged.PageFile(Path("/dev/shm"))


def test_an_error_that_is_not_about_memory_stays_what_it_is():
    optimizer = made("sgd", Three())
    with pytest.raises(RuntimeError, match=r"^another"), paged.room(optimizer):
        raise RuntimeError("another")
    with pytest.raises(FeatherweightError, match="paged=True"), paged.room(optimizer):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_states_lie_in_pinned_memory():
    plain, other = Three().cuda(), Three().cuda()
    first, second = made("adamw", plain), made("adamw", other, paged.home(torch.device("cuda"), None))
    for s in range(4):
        step(first, plain, s)
        step(second, other, s)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
    assert all(t.is_pinned() for state in second.state.values() for k, t in state.items() if k != "step")


def test_the_device_says_where_states_lie(disk):
    assert isinstance(paged.home(CPU, disk), paged.PageFile)
    assert isinstance(paged.home(torch.device("cuda"), disk), paged.HostMemory)
