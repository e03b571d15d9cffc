"""Triton's kernels against the plain definitions: their arithmetic in Triton's interpreter, where there is no GPU, that
they compile for one, and on one where there is.

The interpreter cuts float32 to bfloat16 where a GPU rounds, and its `dot` takes no bfloat16: there, those are a unit in
the last place apart, and not asked for.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.operations import LAW, NF4, TABLES, agrees, calls, weights
from torch.nn import functional as F

from featherweight.quant import ops

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")
from featherweight.kernels import triton_ops

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FLOATS = (torch.float32, torch.float16, *([torch.bfloat16] if GPU else []))
pytestmark = [
    pytest.mark.skipif(not GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU, no interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy, which interprets, on the NaN that are asked for
]
KERNELS = {k.__name__: k for k in triton_ops.SERVED}


def there(*args):
    """Arguments on the device, those of a tuple too."""
    moved = {torch.Tensor: lambda a: a.to(DEVICE), tuple: lambda a: tuple(there(*a))}
    return [moved.get(type(a), lambda a: a)(a) for a in args]


def agree(name, *args):
    return agrees(name, KERNELS[name], *there(*args))


def test_every_operation_has_its_kernel():
    plain = {n.removeprefix("plain_") for n in vars(ops) if n.startswith("plain_")}
    assert KERNELS.keys() == plain - {"linear"} == ops.cuda.keys()  # torch's own product of few rows is fast there


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("k", LAW)
def test_encode_and_decode_on_the_law_list(k, table):
    for block, dtype in ((1, torch.bfloat16), (3, torch.float64), (64, torch.float32), (4096, torch.float16)):
        codes, absmax = agree("encode4", weights(5, k, dtype=dtype, seed=k), TABLES[table], block)
        for out in (*FLOATS, torch.float64):
            agree("decode4", codes, absmax, TABLES[table], block, (5, k), out)


def test_ties_go_to_the_lower_value_and_bad_numbers_take_their_block():
    middles = (NF4[1:] + NF4[:-1]) / 2
    agree("encode4", torch.cat([torch.ones(1), middles, middles.nextafter(torch.tensor(2.0))]), NF4, 64)
    W = weights(4, 64)
    W[0, 3], W[1, 3], W[2] = float("nan"), float("inf"), 0
    agree("encode4", W, NF4, 64)


def test_bf16_is_cut_by_no_more_than_a_place():
    codes, absmax = ops.plain_encode4(weights(9, 48), NF4, 64)
    q, scale = ops.plain_quantize_rows(weights(9, 48), None)
    for name, args in (("decode4", (codes, absmax, NF4, 64, (9, 48))), ("decode8", (q, scale, 48, (9, 48)))):
        wanted = getattr(ops, f"plain_{name}")(*args, torch.bfloat16).float()
        found = KERNELS[name](*there(*args), torch.bfloat16).float().cpu()
        assert ((found - wanted).abs() <= wanted.abs() * 2**-7 * (not GPU)).all()


@pytest.mark.parametrize("k", LAW)
def test_int8(k):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = weights(5, k, dtype=dtype, seed=k)
        x[1], x[2, 0], x[3, k // 2] = 0, float("inf"), float("nan")
        agree("quantize_rows", x, None)
        codes, scale = agree("quantize_rows", x, torch.arange(k) % 3 == 1)
    for block in (1, 7, k):
        scales = weights(-(-5 * k // block), seed=1)
        for out in (torch.float32, torch.float16, torch.float64):
            agree("decode8", codes, scales, block, (5, k), out)
    sums = torch.randint(-(10**6), 10**6, (5, k), dtype=torch.int32)
    for bias in (None, weights(k)):
        agree("rescale", sums, scale.nan_to_num(2, 3), weights(k, seed=3), bias, torch.float32)


def test_scales():
    for n, block in ((1, 256), (255, 256), (1000, 256), (1000, 3)):
        codes = torch.randint(0, 256, (n,), dtype=torch.uint8)
        agree("decode_scales", codes, weights(256), weights(-(-n // block), seed=1), weights(1, seed=2), block)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3, 17, 64])
@pytest.mark.parametrize("k", [2, 48, 96, 160, 1200])
def test_products_of_few_rows(rows, k):
    codes, absmax = ops.plain_encode4(weights(37, k), NF4, 64)
    q, scale = ops.plain_quantize_rows(weights(37, k), None)
    for dtype in FLOATS:
        x, bias = weights(rows, k, dtype=dtype, seed=1), weights(37, seed=2)
        A, B = weights(4, k, seed=3), weights(37, 4, seed=4)
        W4 = ops.plain_decode4(codes, absmax, NF4, 64, (37, k), dtype).double()
        W8 = ops.plain_decode8(q, scale, k, (37, k), dtype).double()
        close = {"rtol": 1e-5, "atol": 2e-4} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 5e-2}
        four = KERNELS["linear4"](*there(x, codes, absmax, NF4, 64, (37, k), bias, A, B, 0.5))
        wanted = F.linear(x.double(), W4 + 0.5 * B.double() @ A.double(), bias.double())
        torch.testing.assert_close(four.double().cpu(), wanted, **close)
        eight = KERNELS["linear8"](*there(x, q, scale, k, (37, k), None))
        torch.testing.assert_close(eight.double().cpu(), F.linear(x.double(), W8), **close)


def test_what_is_not_served_says_so():
    codes, absmax = ops.plain_encode4(weights(8, 64), NF4, 64)
    linear = KERNELS["linear4"]
    for x in (weights(65, 64), weights(2, 64).double(), weights(0, 64), weights(2, 64).requires_grad_()):
        assert linear(*there(x, codes, absmax, NF4, 64, (8, 64)), None, None, None, 0.0) is NotImplemented
    assert KERNELS["decode4"](*there(codes, absmax, NF4), 64, (8, 65), torch.float32) is NotImplemented
    assert KERNELS["encode4"](*there(weights(0, 4), NF4), 64) is NotImplemented
    assert KERNELS["quantize_rows"](*there(weights(2, 3, 4)), None) is NotImplemented


COMPILE = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from featherweight.kernels import triton_kernels as kernels

TYPES = dict(codes="*u8", absmax="*fp32", table="*fp32", scale="*fp32", middles="*fp32", order="*i64", zero="*i64",
             offset="*fp32", skip="*u8", acc="*i32", row="*fp32", col="*fp32", bias="*fp32", x="*bf16", y="*bf16",
             out="*bf16")
SIZES = dict(MANY=4, SIZE=256, SKIPS=True, BIASED=True, ROWS=16, COLS=32, DEEP=64)
sizes = {}
for name, kernel in vars(kernels).items():
    if not isinstance(kernel, triton.JITFunction):
        continue
    types = {n: "constexpr" if n in SIZES else TYPES.get(n, "i32") for n in kernel.arg_names}
    if name in ("decode8", "quantize_rows", "linear8"):
        types["codes"] = "*i8"
    given = {(i,): SIZES[n] for i, n in enumerate(kernel.arg_names) if n in SIZES}
    for level in (80, 90):
        made = triton.compile(ASTSource(kernel, types, given), target=GPUTarget("cuda", level, 32),
                              options={"enable_fp_fusion": False})
        sizes[f"{name} {level}"] = len(made.asm["cubin"])
print(json.dumps(sizes))
"""


def test_they_compile_for_ampere_and_hopper(tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert len(sizes) == 2 * (len(KERNELS) + 1)
    assert min(sizes.values()) > 1000


@pytest.mark.skipif(not GPU, reason="no GPU")
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_opcheck(name):
    args = [list(a) if type(a) is tuple else a for a in there(*calls()[name])]
    torch.library.opcheck(getattr(torch.ops.featherweight, name).default, tuple(args))
