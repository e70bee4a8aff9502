"""What networks, ensembles and merges are worth on labelled data."""
