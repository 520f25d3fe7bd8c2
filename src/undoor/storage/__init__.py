"""Files that are either whole or not there, locks, and arrays that are larger than the memory."""
