"""What mechanisms and models share: norms, positions, feed-forward layers."""
