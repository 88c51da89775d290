"""Data: real sets that come with installed packages, and the synthetic worlds papers train on."""
