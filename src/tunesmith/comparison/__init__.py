"""Several arms on the same data, side by side."""
