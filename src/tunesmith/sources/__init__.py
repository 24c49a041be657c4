"""What arrives, when. A source wraps a source; none knows what the batch is for. The table is in `kinds`, so that reading files needs no torch."""
