"""Files that somebody else may have made, read within limits and without running what is in them."""
