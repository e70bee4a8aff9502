"""From a torch model to its program, its feature spaces and their proof."""
