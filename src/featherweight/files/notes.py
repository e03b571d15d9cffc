"""What libraries log about their own start while they are imported for us: no matter of the user's.

torchao, which transformers imports wherever it is installed, says which of its CUDA libraries do not load here, and
torch what torchao registers in a way that is going out of use. All else that they log is let through.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NOTES = {"torchao": "Failed to load ", "torch.utils._pytree": "is an Enum subclass"}  # logger -> what its notes say


class Told(logging.Filter):
    """Lets through all that is none of the notes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return NOTES[record.name] not in record.getMessage()


TOLD = Told()


def hush() -> None:
    """From now on; a command's process is ours."""
    for name in NOTES:
        logging.getLogger(name).addFilter(TOLD)  # a filter that is there already is not added again


@contextmanager
def hushed() -> Iterator[None]:
    """For as long as a `with`."""
    before = [TOLD in logging.getLogger(name).filters for name in NOTES]
    hush()
    try:
        yield
    finally:
        for name, kept in zip(NOTES, before, strict=True):
            if not kept:
                logging.getLogger(name).removeFilter(TOLD)
