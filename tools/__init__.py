"""Programs that make or check the project. Run them from the root of the repository: ``python -m tools.fuzz``."""
