"""One pass over data: statistics of features, and the inputs that repair needs."""
