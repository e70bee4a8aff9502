"""Models as the rest sees them: their spaces, proved, and their parameters as these want them."""
