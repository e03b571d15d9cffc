"""A teacher's outputs, computed once and kept on disk."""

from featherweight.distill.cache.teacher import TeacherCache

__all__ = ["TeacherCache"]
