"""What each number format costs in quality: perplexity, accuracy, and a model with planted outlier features.

    python benchmarks/quant_quality.py                  every row that is not in the JSON yet; stop it and go on at will
    python benchmarks/quant_quality.py --only stories   parts: stories, sst2, outliers
    python benchmarks/quant_quality.py --match GPTQ     rows whose name contains a word, anew

stories: stories260k, nats per token in windows of 255 tokens after a start token, on the first 6,000 tokens of
wikitext2's valid split and as many of the last fifth of the TinyStories sample. Schemes are calibrated on the other
four fifths for the latter and on C4 documents for the former: never on what is measured. "nearest" is GPTQ's grid and
groups with every weight rounded to nearest.
sst2: MiniLM is trained on sst2 with LoRA (120 steps) and merged once, then quantized as it is; calibrated on training
sentences. Accuracy and loss on GLUE's dev, and agreement with the unquantized model.
outliers: in stories260k a few channels of every norm are scaled up and the columns of the layers that read them down,
so that the outputs in floats stay what they were.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import _paired
import _real
import torch
from torch import Tensor

import featherweight as fw
from featherweight.quant import FP4, GPTQ, NF4, Absmax, Blockwise, Half, LLMInt8, Quantile, ZeroPoint

WINDOW, MEASURED = 255, 6_000  # tokens
CALIBRATION = 8  # windows
CHANNELS, FACTOR = 2, 100.0  # planted: how many in each norm, and how much larger
DYNAMIC, STATIC = {"activations": "dynamic"}, {"activations": "static"}

PLAIN: dict[str, Any] = {
    "fp32": None, "bf16": Half("bf16"), "fp16": Half("fp16"),
    "int8 absmax per tensor": Absmax(per="tensor"), "int8 absmax per row": Absmax(),
    "int8 absmax block 64": Absmax(per=64),
    "int8 zero-point per tensor": ZeroPoint(per="tensor"), "int8 zero-point per row": ZeroPoint(),
    "int8 zero-point block 64": ZeroPoint(per=64), "dynamic 8-bit map block 64": Blockwise(bits=8, table="dynamic"),
    "LLM.int8()": LLMInt8(),
    "NF4": NF4(), "NF4 + DQ": NF4(double=True), "FP4 bitsandbytes": FP4(),
    "FP4 E2M1": FP4(variant="e2m1"), "FP4 E3M0": FP4(variant="e3m0"),
    "int4 absmax block 64": Absmax(bits=4, per=64), "int4 absmax mse": Absmax(bits=4, per=64, clip="mse"),
    "int4 zero-point block 64": ZeroPoint(bits=4, per=64), "int4 absmax per tensor": Absmax(bits=4, per="tensor"),
    "quantile 4-bit": Quantile(), "int3 absmax block 64": Absmax(bits=3, per=64),
    "int3 zero-point block 64": ZeroPoint(bits=3, per=64), "int2 zero-point block 64": ZeroPoint(bits=2, per=64),
}  # fmt: skip
ACTIVATIONS: dict[str, Any] = {
    "int8 absmax, dynamic activations": Absmax(**DYNAMIC), "int8 absmax, static minmax": Absmax(**STATIC),
    "int8 absmax, static average": Absmax(observer="average", **STATIC),
    "int8 absmax, static 99.99": Absmax(observer=99.99, **STATIC),
    "int8 absmax, static mse": Absmax(observer="mse", **STATIC),
    "int8 zero-point, dynamic activations": ZeroPoint(**DYNAMIC), "int8 zero-point, static minmax": ZeroPoint(**STATIC),
    "int8 zero-point, static mse": ZeroPoint(observer="mse", **STATIC),
}  # fmt: skip
GRIDS = {f"{bits} bits {'per row' if group == -1 else f'group {group}'}": GPTQ(bits=bits, group=group)
         for bits in (4, 3, 2) for group in (-1, 64)}  # fmt: skip
CALIBRATED: dict[str, Any] = {
    **{f"GPTQ {name}": scheme for name, scheme in GRIDS.items()},
    **{f"GPTQ {bits} bits group 64 act-order": GPTQ(bits=bits, group=64, act_order=True) for bits in (4, 3, 2)},
    "GPTQ 4 bits group 64 static act-order": GPTQ(group=64, act_order=True, static_groups=True),
    "GPTQ 4 bits group 64 symmetric": GPTQ(group=64, symmetric=True),
}  # fmt: skip
NEAREST = {f"nearest {name}": scheme for name, scheme in GRIDS.items()}
ROWS = {"fp32": None} | NEAREST | CALIBRATED | PLAIN | ACTIVATIONS
OUTLIERS: dict[str, Any] = {
    "fp32": None, "int8 vector-wise (threshold 0)": LLMInt8(threshold=0.0), "LLM.int8()": LLMInt8(),
    "LLM.int8(), original columns kept": LLMInt8(keep=CHANNELS), "int8 weights only, per row": Absmax(),
    "int8 weights only, block 64": Absmax(per=64), **ACTIVATIONS,
}  # fmt: skip


# --- text ----------------------------------------------------------------------------------------------------------


@cache
def windows(name: str) -> Tensor:
    """(windows, 1 + WINDOW) token ids, each window after a start token."""
    tokenizer = fw.load_base(_real.stories(), fw.CausalLM()).tokenizer
    ids = tokenizer(text(name)[: 5 * MEASURED], add_special_tokens=False, verbose=False).input_ids  # 2 letters a token
    ids = torch.tensor(ids[: len(ids) // WINDOW * WINDOW][: MEASURED // WINDOW * WINDOW]).view(-1, WINDOW)
    return torch.cat([torch.full((len(ids), 1), tokenizer.bos_token_id), ids], 1)


def text(name: str) -> str:
    if name == "wikitext2":
        return (_paired.DATA / "wikitext2/valid.txt").read_text(encoding="utf-8")
    if name == "c4":
        lines = (_paired.DATA / "calib_text/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
        return "\n".join(json.loads(line)["text"] for line in lines[:60])
    stories = (_paired.DATA / "tinystories_sample/tinystories.txt").read_text(encoding="utf-8")
    stories = "\n".join(line for line in stories.splitlines() if line.strip())
    cut = stories.index("\n", len(stories) * 4 // 5)
    return stories[:cut] if name == "tinystories train" else stories[cut:]


def batches(name: str) -> list[dict[str, Tensor]]:
    chosen = windows(name)[torch.randperm(len(windows(name)), generator=torch.Generator().manual_seed(0))[:CALIBRATION]]
    return [{"input_ids": ids} for ids in chosen.split(8)]


SETS = {"wikitext2": "c4", "tinystories": "tinystories train"}  # measured on -> calibrated on


@torch.no_grad()
def nats(model: Any, name: str) -> float:
    """Mean loss of a token."""
    total = 0.0
    for ids in windows(name).split(16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
    return total / (windows(name).numel() - len(windows(name)))


# --- rows ----------------------------------------------------------------------------------------------------------


def quantized(model: Any, name: str, scheme: Any, calibration: Callable[[], list[Any]]) -> tuple[Any, dict[str, Any]]:
    """A model quantized by one row's scheme, with bits a weight and the error of weights."""
    if scheme is None:
        return model, {"bits": 32.0}
    if name.startswith("nearest"):
        to_nearest(model, scheme)
        return model, {}
    report = fw.quantize(model, scheme, batches=calibration() if scheme.calibrated else None)
    error = (sum(x.noise for x in report.layers) / sum(x.signal for x in report.layers)) ** 0.5
    return model, {"bits": round(report.bits, 3), "weight_error": round(error, 5)}


def to_nearest(model: Any, scheme: GPTQ) -> None:
    """Without correlations GPTQ is rounding to nearest."""
    for site in fw.core.targets.resolve(model, "linear", ("linear",)):
        W = site.module.weight
        seen = scheme.watch(W.shape[1])
        seen.H, seen.tokens = torch.eye(W.shape[1]), 1
        W.data.copy_(scheme.decode(scheme.encode(W, seen), tuple(W.shape), W.dtype))


def stories_row(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measured, calibration in SETS.items():
        model = fw.load_base(_real.stories(), fw.CausalLM())
        model, what = quantized(model, name, ROWS[name], lambda c=calibration: batches(c))  # type: ignore[misc]
        found |= {f"{measured}_nats": round(nats(model, measured), 4), **what}
    return found


def outliers_row(name: str) -> dict[str, Any]:
    model = planted(fw.load_base(_real.stories(), fw.CausalLM()))
    model, what = quantized(model, name, OUTLIERS[name], lambda: batches("c4"))
    return what | {"wikitext2_nats": round(nats(model, "wikitext2"), 4)}


@torch.no_grad()
def planted(model: Any) -> Any:
    """The same function of the inputs, through a few features of large magnitude."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight[:CHANNELS] *= FACTOR
            for linear in readers:
                linear.weight[:, :CHANNELS] /= FACTOR
    return model


# --- sst2 ----------------------------------------------------------------------------------------------------------

STEPS, RATE = 120, 2e-3


@cache
def classifier(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """MiniLM, trained on sst2 and merged; kept in a folder, so that a run that goes on does not train again."""
    data = _real.sst2(STEPS * 32)
    model, task = _real.classifier(data, 0)
    kept = folder / "sst2.safetensors"
    if not kept.exists():
        from safetensors.torch import save_file

        options = {"steps": STEPS, "batch": 32, "lr": RATE, "seed": 0, "length": 128, "tokenizer": model.tokenizer}
        _real.train_ours(model, data, task, fw.LoRA(rank=8, alpha=16), **options)
        fw.merge(model)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, kept)
    from safetensors.torch import load_file

    model, task = _real.classifier(data, 0)
    model.load_state_dict(load_file(kept))
    return model.eval(), task, data


@torch.no_grad()
def scores(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> Tensor:
    """Logits of every row."""
    found = []
    for at in range(0, len(rows), 64):
        texts = [row["sentence"] for row in rows[at : at + 64]]
        found.append(model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits)
    return torch.cat(found)


def sst2_row(name: str, folder: Path, base: dict[str, Tensor]) -> dict[str, Any]:
    model, task, data = classifier(folder)
    tokenizer = model.tokenizer

    def calibration() -> list[Any]:
        texts = [row["sentence"] for row in data["train"][:256]]
        return [dict(tokenizer(texts[i : i + 32], padding=True, return_tensors="pt")) for i in range(0, 256, 32)]

    model, found = quantized(deepcopy(model), name, ROWS[name], calibration)
    labels = torch.tensor([task.labels.index(row["label"]) for row in data["valid"]])
    logits = scores(model, tokenizer, data["valid"])
    if not base:
        base["logits"] = logits if name == "fp32" else scores(classifier(folder)[0], tokenizer, data["valid"])
    found["accuracy"] = round(float((logits.argmax(1) == labels).float().mean()), 4)
    found["loss"] = round(float(torch.nn.functional.cross_entropy(logits, labels)), 4)
    found["agreement"] = round(float((logits.argmax(1) == base["logits"].argmax(1)).float().mean()), 4)
    return found


# --- the claims ----------------------------------------------------------------------------------------------------


def claims(parts: dict[str, Any]) -> dict[str, Any]:
    """The lectures' claims as measured: whether they hold, and the two figures."""
    found: dict[str, Any] = {}

    def less(claim: str, part: str, metric: str, a: str, b: str) -> None:
        rows = parts.get(part, {})
        if a in rows and b in rows:
            x, y = rows[a][metric], rows[b][metric]
            found[f"{claim} ({part}, {metric.removesuffix('_nats')})"] = {"holds": x < y, a: x, b: y}

    for metric in ("wikitext2_nats", "tinystories_nats"):
        for grid in GRIDS:
            less(f"GPTQ better than rounding to nearest, {grid}", "stories", metric, f"GPTQ {grid}", f"nearest {grid}")
        less("NF4 better than FP4", "stories", metric, "NF4", "FP4 bitsandbytes")
        less("NF4 better than int4", "stories", metric, "NF4", "int4 absmax block 64")
        less("blocks better than one scale", "stories", metric, "int4 absmax block 64", "int4 absmax per tensor")
        less("rows better than one scale", "stories", metric, "int8 absmax per row", "int8 absmax per tensor")
        less("zero-point better than absmax", "stories", metric, "int4 zero-point block 64", "int4 absmax block 64")
        less(
            "dynamic better than static",
            "stories",
            metric,
            "int8 absmax, dynamic activations",
            "int8 absmax, static minmax",
        )
    plain = "int8 vector-wise (threshold 0)"
    less("LLM.int8() better than plain int8", "outliers", "wikitext2_nats", "LLM.int8()", plain)
    less("original columns better than decoded ones", "outliers", "wikitext2_nats", "LLM.int8(), original columns kept", "LLM.int8()")  # fmt: skip  # noqa: E501
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--match", default="")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "featherweight_quant_quality")
    options = parser.parse_args()
    _paired.threads()
    base: dict[str, Tensor] = {}
    parts: dict[str, tuple[dict[str, Any], Callable[[str], dict[str, Any]]]] = {
        "stories": (ROWS, stories_row), "outliers": (OUTLIERS, outliers_row),
        "sst2": (ROWS, lambda name: sst2_row(name, options.work, base)),
    }  # fmt: skip
    before = _paired.load("quant_quality").get("parts", {})
    result: dict[str, Any] = {}
    for part, (rows, measure) in parts.items():
        if options.only not in part:
            continue
        done = result.setdefault(part, before.get(part, {}))
        for name in rows:
            if options.match not in name or (name in done and not options.match):
                continue
            done[name] = measure(name)
            print(part, name, json.dumps(done[name]), flush=True)
            write(result, {part: list(rows) for part, (rows, _) in parts.items()})


def write(result: dict[str, Any], order: dict[str, list[str]]) -> None:
    """Other parts are taken as they are now: another run may be measuring them."""
    result = _paired.load("quant_quality").get("parts", {}) | result
    rows = {p: {n: result[p][n] for n in names if n in result[p]} for p, names in order.items() if p in result}
    settings = {
        "window": WINDOW,
        "tokens": MEASURED,
        "calibration_windows": CALIBRATION,
        "planted": [CHANNELS, FACTOR],
        "steps": STEPS,
    }
    found = {"machine": _paired.machine(), "settings": settings, "claims": claims(rows), "parts": rows}
    _paired.write("quant_quality", found)


if __name__ == "__main__":
    main()
