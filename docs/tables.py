"""Write the tables of README and docs anew: from the method classes and from benchmarks/results/*.json.

    python docs/tables.py        (make docs)

Also writes docs/methods/: a page for each method, their index, and what applies where (`method_pages.py`).

A table stands between `<!-- table: name -->` and `<!-- end -->`; the function of that name renders it. A test compares
what stands there with what would be rendered, so that no figure is ever typed by hand.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import method_pages  # noqa: E402
from method_pages import markdown  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered() -> Iterator[tuple[Path, str]]:
    """(page, its text with every table made anew)."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text()
        if PLACE.search(text):
            yield page, PLACE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)
    yield from method_pages.pages()


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def methods() -> str:
    from featherweight.cli.schema import methods as known

    return method_pages.table(sorted(known().values(), key=lambda m: m.__name__.lower()))


def step() -> str:
    """A training step against peft: medians of interleaved pairs."""
    rows = []
    for name, cell in result("step")["cells"].items():
        model, targets, dropout, dtype = name.split("-")
        low, high = cell["ratio_to_peft_quartiles"]
        shown = [f"{cell['ratio_to_peft']:.2f}", f"{low:.2f} to {high:.2f}", f"{cell['memory_ratio']:.2f}"]
        rows.append([model, {"qv": "query, value", "all": "all linear"}[targets], dropout, dtype, *shown])
    return markdown(
        ["model", "LoRA on", "dropout", "dtype", "time / peft's", "quartiles", "memory added / peft's"], rows
    )


def startup() -> str:
    """What it takes before the first step, beyond torch and transformers."""
    found = result("startup")
    rows = [
        ["import", f"{found['import']['featherweight_s'] * 1e3:.0f} ms", f"{found['import']['peft_s'] * 1e3:.0f} ms"]
    ]
    for verb, cell in found["lifecycle"].items():
        rows.append([verb, f"{cell['featherweight_ms']:.0f} ms", f"{cell['peft_ms']:.0f} ms"])
    rows.append(["`fw --help`", f"{found['help']['fw_help_s'] * 1e3:.0f} ms", ""])
    return markdown(["", "featherweight", "peft"], rows)


def demo() -> str:
    """The bundled messages, before and after."""
    found = result("demo")
    rows = [
        ["frozen embeddings + logistic regression", f"{found['frozen_accuracy']:.1%}", "", ""],
        [
            "LoRA",
            f"{found['tuned_accuracy']:.1%}",
            f"{found['trainable']:,} ({found['share']:.1%})",
            f"{found['seconds']:.0f} s",
        ],
    ]
    return markdown([f"{found['test']} unseen messages", "accuracy", "trained", "time"], rows)


def run() -> str:
    """Whole runs on real rows."""
    rows = []
    for workload, contenders in result("run")["summary"].items():
        peer = contenders["peft"]["useful_tokens_per_second"]
        for name, cell in contenders.items():
            spread = f" ± {cell['std']:.3f}" if cell["std"] is not None else ""
            speed = cell["useful_tokens_per_second"]
            rows.append([workload, name, f"{speed:,.0f}", f"{speed / peer:.2f}", f"{cell['mean']:.3f}{spread}"])
    return markdown(["workload", "", "useful tokens/s", "to peft's defaults", "dev accuracy or loss"], rows)


def quality() -> str:
    """Mean and deviation over seeds."""
    rows = []
    for name, cell in result("quality")["summary"].items():
        loss = cell["valid_loss"]
        rows.append([name, f"{cell['trained']:,}", f"{cell['rate']:g}", str(cell["seeds"]),
                     f"{loss['mean']:.3f} ± {loss['std']:.3f}"])  # fmt: skip
    return markdown(["method", "trained", "lr", "seeds", "dev loss"], rows)


def serving() -> str:
    """Many adapters in one batch, and switching."""
    rows = []
    for name, cell in result("rows")["cells"].items():
        alone = [f"{cell['ratio_to_single']:.2f}" if "ratio_to_single" in cell else "", f"{cell['ratio_to_base']:.2f}"]
        rows.append([f"{name} ({cell['rows']} row{'s' * (cell['rows'] > 1)})", f"{cell['peft_over_ours']:.2f}", *alone])
    switch = result("switch")["result"]
    rows.append(["switching to another adapter", f"{switch['peft_over_ours']:.1f}", "", ""])
    return markdown(["", "times as fast as peft", "time / one adapter's", "time / bare base's"], rows)


def files() -> str:
    """An adapter to disk and back."""
    found = result("files")
    rows = [[name, *(f"{cell[f'{side}_s'] * 1e3:.0f} ms" for side in ("featherweight", "peft")),
             f"{1 / cell['ratio_to_peft']:.1f}"] for name, cell in found["cells"].items()]  # fmt: skip
    return markdown([f"{found['bytes'] / 1e6:.1f} MB", "featherweight", "peft", "times as fast"], rows)


def dora() -> str:
    rows = []
    for dtype, cell in result("dora")["cells"].items():
        low, high = cell["ratio_to_peft_quartiles"]
        rows.append([dtype, f"{cell['ratio_to_peft']:.2f}", f"{low:.2f} to {high:.2f}"])
    return markdown(["dtype", "time / peft's", "quartiles"], rows)


def ordering() -> str:
    """Every method at one budget, with its paired difference to LoRA."""
    rows = []
    for task, methods_ in result("methods")["summary"].items():
        for name, cell in sorted(methods_.items(), key=lambda item: -item[1]["test"]):
            spread = f" ± {cell['std']:.3f}" if cell["std"] is not None else ""
            pair = f"{cell['to_lora']:+.3f} ± {cell['interval']:.3f}" if "to_lora" in cell else ""
            rows.append([task, name, f"{cell['trained']:,}", f"{cell['rate']:g}", str(cell["seeds"]),
                         f"{cell['test']:.3f}{spread}", pair])  # fmt: skip
    return markdown(["data", "method", "trained", "lr", "seeds", "test accuracy", "to LoRA, ± 2 standard errors"], rows)


def kernels() -> str:
    """Native code against bitsandbytes on a CPU: medians of interleaved pairs."""
    rows = []
    for name, cell in result("kernels")["cells"].items():
        peer = next(n for n in ("bitsandbytes", "torch") if f"ratio_to_{n}" in cell)
        low, high = cell[f"ratio_to_{peer}_quartiles"]
        limit = f"{cell['of_bandwidth']:.0%} of the measured bandwidth" if "of_bandwidth" in cell else ""
        rows.append([name, peer, f"{cell['peer_over_ours']:.3g}", f"{1 / high:.3g} to {1 / low:.3g}", limit])
    return markdown(["operation", "peer", "times as fast", "quartiles", ""], rows)


def qlora() -> str:
    """A QLoRA step against bitsandbytes and peft."""
    rows = []
    for name, cell in result("qlora")["cells"].items():
        low, high = cell["ratio_to_bitsandbytes_quartiles"]
        tokens, _, recompute = name.partition("-")
        rows.append([tokens, "yes" if recompute else "", f"{cell['ratio_to_bitsandbytes']:.2f}",
                     f"{low:.2f} to {high:.2f}", f"{cell['memory_ratio']:.2f}"])  # fmt: skip
    return markdown(["tokens", "recomputed", "time / theirs", "quartiles", "memory added / theirs"], rows)


def claims() -> str:
    """What is said of number formats, and what came out: nats a token."""
    rows = []
    for name, claim in result("quant_quality")["claims"].items():
        what, _, where = name.rstrip(")").rpartition(" (")
        shown = [f"{k} {v:.3f}" for k, v in claim.items() if k != "holds"]
        rows.append([what, where, *shown, "yes" if claim["holds"] else "**no**"])
    return markdown(["claim", "on", "this", "that", "holds"], rows)


def formats() -> str:
    """A linear layer's CPU time by number format over fp32's, by rows."""
    cells = {
        name.removeprefix("layer-"): c for name, c in result("formats")["cells"].items() if name.startswith("layer-")
    }
    names = [n for n, cell in next(iter(cells.values())).items() if isinstance(cell, dict) and "ratio" in cell]
    rows = [[n, *(f"{cell[n]['ratio']:.2f}" for cell in cells.values())] for n in names]
    return markdown(["over fp32's time", *(f"{rows} row{'s' * (rows != '1')}" for rows in cells)], rows)


def in_codes() -> str:
    """Adapters over a base in codes beside the same over a float one: three seeds, paired."""
    rows = []
    for name, cell in result("qlora_quality")["summary"].items():
        for metric, of in (m for m in cell.items() if isinstance(m[1], dict)):
            low, high = of["interval"]
            shown = [f"{of[side]:.3f}" for side in ("LoRA", "QLoRA")]
            rows.append(["NF4, double", f"{name}, {metric.replace('_', ' ')}", *shown,
                         f"{of['difference']:+.3f} ({low:+.3f} to {high:+.3f})"])  # fmt: skip
    found = result("int8")["quality"]["summary"]
    losses = found["dev_loss"]
    for base, less in found["mean_less_float"].items():
        shown = [f"{sum(losses[b]) / len(losses[b]):.3f}" for b in ("float", base)]
        rows.append([f"LLM.int8(){', exact backward' if base == 'int8-exact' else ''}", "e2e_nlg, valid loss", *shown,
                     f"{less:+.4f} (seeds lie {found['spread_of_float']:.4f} apart)"])  # fmt: skip
    return markdown(["base", "on", "LoRA over floats", "over codes", "difference, 95 %"], rows)


def aware() -> str:
    """Rounding afterwards beside training in codes: nats a token, means over three seeds."""
    cells = result("qat")["nats"]
    names = list(next(iter(cells.values())))
    rows = [[width, *(f"{cell[n]['mean']:.3f}" for n in names)] for width, cell in cells.items()]
    return markdown(["", *names], rows)


def planned() -> str:
    """Planned against measured peaks, by shape, method and number format."""
    rows = []
    for name, run in result("plan")["runs"].items():
        model, method, number, keeps, length = name.split()
        sizes = [f"{run[k] / 1e6:,.0f}" for k in ("measured", "planned")]
        again = "yes" if keeps == "recompute" else ""
        rows.append([model, method, number, again, length, *sizes, f"{run['ratio']:.3f}"])
    made = markdown(["shape", "method", "base", "recomputed", "tokens", "measured, MB", "planned, MB", "ratio"], rows)
    s = result("plan")["summary"]
    off = f"off by {s['median_off']:.1%} in the median, {s['worst_off']:.1%} at worst"
    return f"{made}\n\n{s['within_10_percent']} of {s['runs']} within 10 %; {off}."


def published() -> str:
    """The papers' memory figures beside what is planned for the same model."""
    rows = [[r["model"], r["case"], f"{r['published_gb']:,.4g}", f"{r['planned_gb']:,.4g}", r["why"]]
            for r in result("published_memory")["rows"]]  # fmt: skip
    return markdown(["model", "case", "published, GB", "planned, GB", "what the printed figure holds beside"], rows)


def distilled() -> str:
    """Students with a teacher and without; of the teacher's accuracy, or perplexity over the teacher's."""
    head = ["data", "student", "lr", "seeds", "on test", "of the teacher's", "agrees", "to labels, 95 %", ""]
    rows = []
    for job, found in result("distill")["jobs"].items():
        for arm, cell in found.get("summary", {}).items():
            words, pair = "nats" in cell, ["", ""]
            shown = f"perplexity {cell['perplexity']:.2f}" if words else f"{cell['accuracy']:.1%}"
            share = f"{cell['to_the_teachers' if words else 'share_of_the_teachers']:.1%}"
            if "to_labels" in cell:
                low, high = cell["interval"]
                pair = [f"{cell['to_labels']:+.3f} ({low:+.3f} to {high:+.3f})", cell["says"]]
            given = [f"{cell['rate']:g}", str(cell["seeds"])]
            rows.append([job, arm, *given, shown, share, f"{cell['agreement']:.1%}", *pair])
        refused = dict.fromkeys(name.rsplit(", lr", 1)[0] for name, run in found["runs"].items() if "error" in run)
        rows += [[job, arm, "", "", "refused", "", "", "", ""] for arm in refused]
    return markdown(head, rows)


def students() -> str:
    """What a student saves, beside what the papers print."""
    rows = [["DistilBERT, 6 of 12 layers (paper)", "40 %", "1.6", "", ""],
            ["TinyBERT, 4 of 12 layers, narrower (paper)", "87 %", "9.4", "", ""]]  # fmt: skip
    for job, cell in result("distill").get("speed", {}).items():
        times = [f"{cell[f'batch {size}']['ratio_to_student']:.2f}" for size in (1, 8, 32)]
        rows.append([f"{job}, 3 layers", f"{cell['smaller']:.0%}", *times])
    return markdown(["", "smaller", "times as fast, batch 1", "batch 8", "batch 32"], rows)


def cached() -> str:
    """An epoch without and with the teacher's outputs on disk."""
    rows = [[name, f"{c['without_s']:.1f} s", f"{c['first_s']:.1f} s", f"{c['second_s']:.1f} s",
             f"{c['times_as_fast']:.2f}", f"{c['bytes_a_row'] / 1e3:.1f} kB"]
            for name, c in result("distill").get("cache", {}).items()]  # fmt: skip
    return markdown(["recipe", "without", "first, writing", "second", "times as fast", "a row"], rows)


def tfew() -> str:
    """T-Few's ablation: by task the accuracy of each way and its difference to (IA)3's with the interval, then over
    tasks."""
    found = dict(result("tfew")["summary"])
    whole = found.pop("all")
    found |= {f"mean of {len(whole['tasks'])}": whole} if len(whole["tasks"]) > 1 else {}
    ways = list(dict.fromkeys(way for task in found.values() for way in task if isinstance(task[way], dict)))
    rows = [[way, *(beside_ia3(task[way]) if way in task else "" for task in found.values())] for way in ways]
    rows += [[n, *(f"{task[n]:.1%}" if n in task else "" for task in found.values())] for n in ("chance", "commonest")]
    return markdown(["", *found], rows)


def beside_ia3(cell: dict[str, Any]) -> str:
    """Accuracy, the difference to (IA)3 in points, and how many seeds where they are not T-Few's five."""
    gap = [f"{100 * v:+.1f}" for v in (cell["to_ia3"], *cell["interval"])] if "to_ia3" in cell else []
    shown = f"{cell['accuracy']:.1%}" + (f"; {gap[0]} ({gap[1]} to {gap[2]})" if gap else "")
    return shown + (f"; {cell['seeds']} seeds" if cell.get("seeds", 5) < 5 else "")


def probes() -> str:
    """Precision@1 and mean reciprocal rank of written and of learned words."""
    rows = []
    for name, cell in result("probes")["relations"].items():
        shown = [*(cell[f"written, {which}: {m}"] for which in ("best", "mean") for m in ("p@1", "mrr")),
                *(statistics.mean(cell[f"learned: {m}"]) for m in ("p@1", "mrr"))]  # fmt: skip
        rows.append([name, str(cell["asked"]), *(f"{v:.2f}" for v in shown)])
    ways = ("best written", "written, mean", "learned")
    return markdown(["relation", "facts asked", *(f"{way}: {m}" for way in ways for m in ("P@1", "MRR"))], rows)


def compared() -> str:
    """What needs no tuning beside what was tuned: means over seeds, and the difference on the rows of each seed."""
    from featherweight.baselines.comparison import size, work

    rows = []
    for cell, found in result("compare")["summary"].items():
        for name, line in found.get("lines", {}).items():
            gaps = [[100 * g["difference"], *(100 * v for v in g["interval"])] for g in line.get("to_best_untuned", [])]
            back = [n if isinstance(n, str) else f"{max(n, 1):,}" for n in line["pays_back"] if n is not None]
            shown = "; ".join(f"{gap:+.1f} ({low:+.1f} to {high:+.1f})" for gap, low, high in gaps)
            costs = [work(line["training_flops"]), work(line["query_flops"]), size(round(line["disk_bytes"]))]
            rows.append([cell, name, f"{line['score']:.1%} ({found['seeds']})", shown, *costs, ", ".join(back)])
    head = ["base, set", "", "accuracy (seeds)", "to the best untuned, points (95 %), by seed", "training FLOPs",
            "FLOPs a query", "disk", "pays back at query"]  # fmt: skip
    return markdown(head, rows)


def rivals() -> str:
    """The papers' own figures."""
    from featherweight.baselines.published import TABLES as PUBLISHED

    return "\n\n".join(f"{t.title}:\n\n{markdown(t.cells[0], t.cells[1:])}" for t in PUBLISHED)


def retrieval() -> str:
    """banking77 as retrieval: means over seeds, and the gain over the untouched encoder."""
    rows = []
    for split, contenders in result("retrieval")["summary"].items():
        for name, cell in contenders.items():
            metrics = ("hit_rate@1", "hit_rate@5", "mrr", "ndcg@10")
            shown = [gained(cell[metric], name == "before") for metric in metrics]
            rows.append([split, name, f"{cell['rate']:g}" if cell["rate"] else "", str(cell["seeds"]), *shown])
    return markdown(["intents", "", "lr", "seeds", "hit rate@1", "hit rate@5", "MRR", "nDCG@10"], rows)


def gained(cell: Any, start: bool) -> str:
    """`mean`, and the gain with its interval for what was trained."""
    spread = f" ± {cell['interval']:.3f}" if cell["interval"] is not None else ""
    return f"{cell['mean']:.3f}" + ("" if start else f" ({cell['gain']:+.3f}{spread})")


def shared() -> str:
    """Choices behind one pass over their text: how many times as fast as rows of the text with each choice."""
    rows = []
    for name, cell in result("shared_context")["cells"].items():
        peers = [cell.get(f"ratio_to_{peer}") for peer in ("pairs", "transformers")]
        rows.append([*name.split(", "), *("" if r is None else f"{1 / r:.1f}" for r in peers)])
    return markdown(["model", "text", "choices", "against pairs", "against transformers' forward"], rows)


def ranks() -> str:
    """LoRA by rank, place, alpha and dtype, and what else was trained on the same rows."""
    head = ["data", "", "trained", "lr", "seeds", "on test", "to q,v r 8, 95 %", "", "to full, 95 %"]
    rows = []
    for name, cell in result("rank")["cells"].items():
        for arm, line in cell.get("summary", {}).items():
            shown = f"{line['test']:.3f} nats" if cell["words"] else f"{line['test']:.1%}"
            spread = f" ± {line['std']:.3f}" if "std" in line else ""
            pairs = [apart(line[to]) if to in line else "" for to in ("to_lora", "to_full")]
            rows.append([name, arm, f"{line['trained']:,}", f"{line['rate']:g}", str(line["seeds"]), shown + spread,
                         pairs[0], line.get("to_lora", {}).get("says", ""), pairs[1]])  # fmt: skip
    return markdown(head, rows)


def apart(pair: Any) -> str:
    return f"{pair['difference']:+.3f} ({pair['interval'][0]:+.3f} to {pair['interval'][1]:+.3f})"


def spectra() -> str:
    """What full fine-tuning changed: the share of its energy at a rank, and what the LoRA cut out there scores."""
    rows = []
    for name, cell in result("rank")["cells"].items():
        found = cell.get("spectrum", {})
        for rank, line in sorted(found.get("ranks", {}).items(), key=lambda item: int(item[0])):
            shown = f"{line['test']:.3f} nats" if cell["words"] else f"{line['test']:.1%}"
            label = rank if int(rank) < found["full_rank"] else f"all {found['full_rank']:g}"
            rows.append([name, str(found["seeds"]), label, f"{line['share']:.1%}", shown, apart(line)])
            if int(rank) >= found["full_rank"]:
                break
    return markdown(["data", "seeds", "rank", "of the energy", "on test", "to the fine-tuned model, 95 %"], rows)


def latency() -> str:
    """A forward pass under an adapter over the bare base's."""
    cells = result("latency")["forward"]
    names = [n for n in next(iter(cells.values())) if n not in ("seconds", "rounds")]
    rows = [[n, *(f"{100 * (cell[n]['ratio'] - 1):+.0f} %" for cell in cells.values())] for n in names]
    return markdown(["", *cells], rows)


def costs() -> str:
    """A training step of each method over full fine-tuning's, cheapest first."""
    found = result("latency")["step"]["MiniLM"]
    ratios = sorted((found[name]["ratio"], name) for name in found["trained"] if name != "Full")
    rows = [[name, f"{found['trained'][name]:,}", f"{ratio:.2f}", "{:.2f} to {:.2f}".format(*found[name]["quartiles"])]
            for ratio, name in ratios]  # fmt: skip
    return markdown(["method", "trained", "step / full fine-tuning's", "quartiles"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "retrieval": retrieval, "shared": shared,
    "methods": methods, "step": step, "startup": startup, "demo": demo, "run": run, "quality": quality,
    "serving": serving, "files": files, "dora": dora, "ordering": ordering, "kernels": kernels, "qlora": qlora,
    "claims": claims, "formats": formats, "in_codes": in_codes, "aware": aware,
    "planned": planned, "published": published, "distilled": distilled, "students": students,
    "cached": cached, "tfew": tfew, "probes": probes, "compared": compared, "rivals": rivals,
    "ranks": ranks, "spectra": spectra, "latency": latency, "costs": costs,
}  # fmt: skip


def main() -> None:
    method_pages.FOLDER.mkdir(exist_ok=True)
    for page, text in [*rendered(), (method_pages.FOLDER / "applies.md", method_pages.applies())]:
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
