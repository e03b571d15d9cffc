"""A report as lines of text."""

from collections.abc import Iterator

from featherweight.distill.report.compared import Interval
from featherweight.distill.report.report import CHOSEN, DistillReport, Member
from featherweight.quant.report import size


def lines(report: DistillReport) -> Iterator[str]:
    """Size, speed, score, agreement, calibration and classes; a column for each model."""
    members = {"teacher": report.teacher, "student": report.student}
    members |= {} if report.control is None else {"labels alone": report.control}
    first, score = report.teacher, report.metric.replace("_", " ")
    yield row("", *members)
    yield row("parameters", *(f"{m.parameters:,}" for m in members.values()))
    yield row("  transformer", *(f"{m.transformer:,}" for m in members.values()))
    yield row("  embeddings", *(f"{m.embedding:,}" for m in members.values()))
    yield row("bytes", *(f"{size(m.bytes)} ({100 * m.bytes / first.bytes:.0f} %)" for m in members.values()))
    for batch in report.faster:
        yield row(f"forward, batch {batch}", *(seconds(m.seconds[batch]) for m in members.values()))
    yield row(score, *(f"{m.scores[report.metric]:.4f}" for m in members.values()))
    yield row("  kept", *(f"{report.kept(m):.1f} %" for m in members.values()))
    yield row(f"ECE, {report.bins} bins", *(f"{m.ece:.4f}" for m in members.values()))
    yield ""
    for batch, times in report.faster.items():
        yield f"batch {batch}: {times.value:.2f} times as fast (quartiles {times.low:.2f} to {times.high:.2f})"
    yield f"{report.hardware}; {report.units:,} answers in {report.rows:,} rows of {report.split}"
    yield (f"agrees with the teacher on {percent(report.agreement)}; KL {report.kl:.4f} nats; "
           f"right less the teacher's {points(report.lost)}")  # fmt: skip
    yield from control(report)
    yield from classes(report)
    yield from report.notes


def row(name: str, *cells: str) -> str:
    return f"{name:<18}" + "".join(f"{cell:>20}" for cell in cells)


def seconds(value: float) -> str:
    return f"{1000 * value:.2f} ms"


def percent(given: Interval) -> str:
    return f"{100 * given.value:.1f} % [{100 * given.low:.1f}, {100 * given.high:.1f}]"


def points(given: Interval) -> str:
    return f"{100 * given.value:+.1f} points [{100 * given.low:+.1f}, {100 * given.high:+.1f}]"


def control(report: DistillReport) -> Iterator[str]:
    """What the teacher did."""
    if report.gained is not None and report.saved is not None:
        saved = f"{report.saved.value:+.4f} nats [{report.saved.low:+.4f}, {report.saved.high:+.4f}]"
        yield f"right less that on labels alone {points(report.gained)}; loss {saved}"


def classes(report: DistillReport) -> Iterator[str]:
    """The classes that lost most."""
    if not report.classes:
        return
    sure = [c for c in report.classes if c.difference.low > 0 or c.difference.high < 0]
    yield (f"{len(sure)} of {len(report.classes)} classes differ from the teacher beyond their 95 % intervals"
           f" ({0.05 * len(report.classes):.1f} would by chance); those that lost most:")  # fmt: skip
    for c in report.classes[:CHOSEN]:
        yield f"  {c.name}: {c.teacher:.3f} -> {c.student:.3f}, {points(c.difference)}, {c.rows} rows"


def models(report: DistillReport) -> dict[str, Member]:
    """Those that are there, by what a picture calls them."""
    found = {"teacher": report.teacher, "student": report.student}
    return found if report.control is None else {**found, "labels alone": report.control}
