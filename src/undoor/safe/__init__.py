"""Readers of files that somebody else may have made: they keep to limits, and run nothing that a file contains.

Whoever made a file may want it to run code, to use up the memory or the time of the machine, or to deceive a terminal.
Every reader of this package refuses such a file with a ``ValueError`` that gives the reason; its caller adds the name
of the file and what to do. Each module says what it protects against, how, and within which limits.

- ``limits``: which files are read at all, how large they may be, and which names they may contain.
- ``images``: one encoded image.
- ``pickles``: pickles of plain values; ``arrays`` adds NumPy arrays, and ``torch_files`` what ``torch.save`` wrote.
- ``thrift``, ``parquet_footer`` and ``parquet``: the encoding of Parquet's metadata, the metadata, and the tables.
"""
