"""Programs that measure how well undoor works. Run them from the root: ``python -m studies.adaptive``."""
