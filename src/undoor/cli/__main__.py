"""``python -m undoor.cli``."""

from undoor.cli import main

main()
