"""More training rows made of those there are, as TinyBERT has it."""

from featherweight.distill.augment.augment import Augment, augmented

__all__ = ["Augment", "augmented"]
