"""What averaging costs, restored: means, variances, and linear operations fitted anew."""
