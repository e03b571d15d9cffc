"""bitsandbytes as an oracle, where it is installed; imported when first asked for, since that takes seconds."""

import contextlib
import io
from functools import cache
from typing import Any

import pytest


@cache
def functional() -> Any:
    """`bitsandbytes.functional`, or the test is skipped."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        pytest.importorskip("bitsandbytes")
        import bitsandbytes.functional as found
    return found
