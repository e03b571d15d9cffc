"""The loop: steps, lines of history, checkpoints, evaluations, early stop, signals.

Everything that a resumed run must know beside tensors is in `Progress`: integers and floats, kept as JSON.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from featherweight.core.errors import FeatherweightError
from featherweight.core.method import Method
from featherweight.train import snapshot, store
from featherweight.train.advice import advice, unmoved
from featherweight.train.evaluation import Dev
from featherweight.train.log import Board, Journal, Voice
from featherweight.train.settings import Settings
from featherweight.train.step import Done, Stepper
from featherweight.train.stop import Stop, Stopped


@dataclass
class Progress:
    """Where a run is. `lines` counts the lines of metrics.jsonl at this point; the window is since the last one."""

    step: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0  # evaluations since the best one
    tokens: int = 0
    window_loss: float = 0.0
    window_units: float = 0.0
    lines: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Loop:
    """One run. `identity` is what must be equal when it is resumed; `folder` None keeps everything in memory."""

    model: nn.Module
    stepper: Stepper
    dev: Dev | None
    settings: Settings
    total: int
    journal: Journal
    voice: Voice
    stop: Stop
    folder: Path | None = None
    board: Board | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] | None = None
    started: float = field(default_factory=perf_counter)
    label: str | None = None  # of all predictions of the last evaluation
    done_tokens: int = 0  # by this process, in `busy` seconds of steps
    busy: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stepper.trained)

    @property
    def epoch_steps(self) -> int:
        return self.stepper.feed.order.per_epoch

    def run(self) -> None:
        """Train to the end. Raises Stopped after a signal, with the step saved."""
        p = self.progress
        self.stepper.task.noted()  # what preparing left there is of no step
        if not p.step and (said := unmoved(self.settings.optimizer, self.lr, self.stepper.tensors())):
            self.voice.say(said)
        if p.step and self.evaluates() and p.evaluated < p.step:
            self.evaluate()  # the run ended between this step's checkpoint and its evaluation
        while p.step < self.total and not self.exhausted():
            began = perf_counter()
            done = self.stepper.make(p.step + 1)
            self.busy += perf_counter() - began
            self.advance(done)
            signal = self.signalled()
            evaluates = self.evaluates()
            if signal or evaluates or self.due(self.settings.checkpoint_every) or p.step == self.total:
                self.save()
            if signal:
                raise self.stopped(signal)
            if evaluates:
                self.evaluate()
        self.advise()

    @property
    def method(self) -> Method:
        """The first that is trained."""
        return next(iter(self.stepper.trained.values()))[0]

    @property
    def lr(self) -> float:
        """Its peak rate."""
        return self.settings.lr or self.method.lr

    def advise(self) -> None:
        """Say so where the run, now over, shows signs that it learned nothing."""
        rows = len(self.dev.rows) if self.dev is not None else 0
        if said := advice(self.label, rows, self.journal.history, self.lr, self.method.lr):
            self.voice.say(said)

    def advance(self, done: Done) -> None:
        """Count a step that was made, and tell of it."""
        p = self.progress
        p.step += 1
        tokens = self.stepper.feed.tokens(p.step)
        p.tokens, self.done_tokens = p.tokens + tokens, self.done_tokens + tokens
        p.window_loss, p.window_units = p.window_loss + done.loss, p.window_units + done.units
        noted = self.stepper.task.noted()
        self.voice.step(p.step, self.total, p.window_loss / p.window_units, self.speed())
        if self.logs():
            norm = done.norm if isfinite(done.norm) else None  # fp16: the scaler left this update out
            self.write(loss=p.window_loss / p.window_units, lr=done.rate, grad_norm=norm, tokens=p.tokens, **noted)
            p.window_loss = p.window_units = 0.0

    def write(self, **values: Any) -> None:
        """One line of history; what the clock decides is apart."""
        clock = {"seconds": round(perf_counter() - self.started, 3), "tokens_per_second": round(self.speed(), 1)}
        at = {"step": self.progress.step, "epoch": round(self.progress.step / self.epoch_steps, 4)}
        record = {**at, **values, "time": clock}
        self.journal.write(record)
        if self.board is not None:
            self.board.write(record)

    def speed(self) -> float:
        """Real tokens per second of this process's steps."""
        return self.done_tokens / max(1e-9, self.busy)

    def due(self, every: int | None) -> bool:
        """Whether this step ends an interval: `every` steps, else an epoch."""
        return self.progress.step % (every or self.epoch_steps) == 0

    def evaluates(self) -> bool:
        return self.dev is not None and (self.due(self.settings.eval_every) or self.progress.step == self.total)

    def logs(self) -> bool:
        """Whether this step gets a line: every `log`-th, the first, and what is the last or may be by patience."""
        step, last = self.progress.step, self.settings.patience is not None and self.evaluates()
        return step in (1, self.total) or step % self.settings.log == 0 or last

    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.settings.patience is not None and self.progress.stale >= self.settings.patience

    def evaluate(self) -> None:
        """Score the dev rows and note whether they are the best so far."""
        assert self.dev is not None
        p, stepper = self.progress, self.stepper
        scores, label = self.dev.scores(self.model, stepper.ranks, stepper.arithmetic, self.poll())
        if not isfinite(scores["loss"]):
            raise FeatherweightError(
                f"step {p.step}: the dev loss is {scores['loss']}; the checkpoint before it is kept"
            )
        shown = {k: v if isfinite(v) else None for k, v in scores.items()}
        metric, higher = self.dev.task.best
        value = shown.get(metric)
        better = value is not None and (p.best is None or (value > p.best if higher else value < p.best))
        p.evaluated, p.stale = p.step, 0 if better else p.stale + 1
        if better:
            p.best, p.best_step = value, p.step
            self.best_weights = snapshot.weights(self.model, self.names) if self.folder is None else None
        self.write(dev=shown, best=better)
        told = "  ".join(f"{k} {v:.4f}" for k, v in shown.items() if v is not None)
        self.voice.say(f"step {p.step}: dev {told}{'  (best so far)' if better else ''}")
        self.label = label

    def poll(self) -> Callable[[], None]:
        """What evaluation asks between batches: one process may end it there, several go on together to its end."""

        def ask() -> None:
            if self.stop.signal and self.stepper.ranks.world == 1:
                raise self.stopped(self.stop.signal)

        return ask

    def signalled(self) -> int:
        """The signal that any rank got, 0 for none; all ranks get the same answer."""
        got = self.stop.signal
        interrupts, others = self.stepper.ranks.total(float(got == 2), float(got not in (0, 2)))
        return 2 if interrupts else 15 if others else 0

    def stopped(self, signal: int) -> Stopped:
        where = "" if self.folder is None else str(self.folder / f"step-{self.progress.step}")
        return Stopped(signal, self.progress.step, where)

    def save(self) -> None:
        """A checkpoint of this step, by the first rank while the others wait."""
        if self.folder is not None and self.stepper.ranks.main:
            p = self.progress
            self.journal.sync()
            p.lines, p.scaler = len(self.journal.history), self.stepper.scaler.state_dict()
            tensors = snapshot.training_state(self.model, self.names, self.stepper.optimizer)
            objects = {"progress": asdict(p), "identity": self.identity}
            store.save(self.folder, p.step, tensors, objects, self.settings.keep, p.best_step)
        self.stepper.ranks.wait()

    def restore(self, found: store.Checkpoint) -> None:
        """Take a checkpoint's state as this run's."""
        self.progress = Progress(**found.files["progress"])
        snapshot.restore(self.model, self.names, self.stepper.optimizer, found.files)
        if self.progress.scaler:
            self.stepper.scaler.load_state_dict(self.progress.scaler)

    def choose(self) -> str:
        """Leave the best evaluated weights in the model, where asked; says which step's they are."""
        p = self.progress
        if not self.settings.best or p.best_step in (None, p.step):
            return f"the weights are those of the last step, {p.step}"
        if self.folder is None:
            assert self.best_weights is not None
            snapshot.load_weights(self.model, self.names, self.best_weights)
        else:
            found = store.read(self.folder / f"step-{p.best_step}")
            if not isinstance(found, store.Checkpoint):
                raise store.CheckpointError(f"the best step's checkpoint is damaged: {found}; the last one is whole")
            snapshot.load_weights(self.model, self.names, found.files["adapter"])
        return f"the weights are those of the best step, {p.best_step} of {p.step}"
