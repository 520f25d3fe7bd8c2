"""Files that are written whole or not at all, locks on outputs, and arrays that are larger than the memory."""
