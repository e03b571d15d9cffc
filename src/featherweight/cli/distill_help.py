"""The help of `fw distill`, drawn from its schema."""

from featherweight.cli.distill_config import DISTILL, SHARED, distill_keys
from featherweight.cli.screen import Shown
from featherweight.cli.train_help import panels

USAGE = """\
Usage: fw distill TEACHER DATA [--KEY VALUE ...]      or: fw distill RUN.TOML

Train a smaller model on what a larger one makes of your data, and report its
size, speed and score beside the teacher's.

  fw distill out/support messages.jsonl --layers 3 --output out/small
  fw distill out/support messages.jsonl --recipe tinybert --cache --output out/tiny
  fw distill out/support messages.jsonl --control --output out/honest
"""


def distill_help() -> Shown:
    """Every key with its kind, default and purpose."""
    own = {key.name for key in DISTILL} | set(SHARED)
    return panels(USAGE, distill_keys(), own, "The distillation", "Recipes have options: --recipe.temperature 4.")
