"""The merge itself: align, average, repair, and put normalisation back."""
