"""Networks: their structures, how they are trained, and any network as a classifier with features."""
