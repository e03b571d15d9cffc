"""More training rows made of those there are, as TinyBERT has it."""

from featherweight.distill.augment.augment import augmented

__all__ = ["augmented"]
