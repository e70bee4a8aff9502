"""A model as a program: what its forward computes, whatever writes it."""
