"""Makes settings for tests of properties with hypothesis."""


def always(examples: int):
    """Return settings with which a test always tries the same examples, however long they take."""
    from hypothesis import settings  # the tests for a GPU also run without hypothesis

    return settings(max_examples=examples, derandomize=True, deadline=None, database=None)
