"""The command line: thin calls of the Python API, their flags, screens and exit codes."""
