"""The mechanism: hosts, adapters, targets, switching and merging. Imports torch and nothing else."""
