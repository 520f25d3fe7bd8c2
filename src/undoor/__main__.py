"""Runs the command line as ``python -m undoor``."""

from undoor.cli import main

main()
