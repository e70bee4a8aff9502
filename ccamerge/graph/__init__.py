"""From a model to its feature spaces: programs, axes that share a basis, and maps on them."""
