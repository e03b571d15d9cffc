"""Distillation: a student made of its teacher, losses between the two, and recipes that mix them.

`featherweight.distill(...)` is a verb and this package at once.
"""
