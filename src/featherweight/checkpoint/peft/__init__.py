"""PEFT's format, one method a file: JSON fields and tensor names, both ways. Nothing here imports peft."""
