"""The commands and their one-line descriptions; each module is imported when its command is called."""

from functools import cache

from cyclopts import App

from featherweight import __version__

COMMANDS = {
    "train": "Fine-tune a model on your data.",
    "eval": "Score a model or an adapter on labelled data.",
    "compare": "Do I need to fine-tune at all? Baselines and adapters on the same rows.",
    "predict": "Label the rows of a file, or answer them.",
    "generate": "Write on from a prompt.",
    "merge": "Fold an adapter into its model: a plain model folder.",
    "quantize": "Keep a model's weights as 4- or 8-bit codes: a folder a quarter of the size.",
    "distill": "Train a smaller model on what a larger one makes of your data, and report what is kept.",
    "extract": "Turn a full fine-tune into a LoRA, and show its spectrum.",
    "methods": "The methods: paper, where each sits, its fields and defaults.",
    "plan": "What a run needs, before it runs: parameters, memory, disk, work.",
    "fewshot": "Every task of a few-shot suite, trained and scored alike: FewGLUE, RAFT, T-Few's draws.",
    "templates": "The prompt templates, and how they word the rows of a file.",
    "data": "Show what a data file will train on, before it does.",
    "pairs": "Make pairs to train embeddings on: of one label, of one passage, or said to belong together.",
    "demo": "Fine-tune a real sentence encoder on 1,000 support messages, in about a minute.",
}

OWN_FLAGS = ("train", "distill", "plan", "fewshot")  # they read their flags themselves
ABOUT = "Adapt a frozen transformer by training almost none of it."

COMMON = "Every command takes **--json** (one object on stdout, all else on stderr) and **--debug** (tracebacks)."

EPILOGUE = f"""\
{COMMON}

**Start here**

    fw demo
    fw train --model MODEL --data rows.csv --output out/first
    fw predict --adapter out/first --data new.csv --output answers.csv
"""


@cache
def app() -> App:
    """The cyclopts application: names and descriptions only."""
    made = App(name="fw", help=ABOUT, version=f"featherweight {__version__}", help_epilogue=EPILOGUE,
               help_format="markdown", suppress_keyboard_interrupt=False)  # fmt: skip
    for name, about in COMMANDS.items():
        flags: dict[str, list[str]] = (
            {"help_flags": []} if name in OWN_FLAGS else {}
        )  # train's flags are the schema's: it shows them itself
        made.command(f"featherweight.cli.{name}_command:command", name=name, help=about, help_epilogue=COMMON, **flags)
    return made
