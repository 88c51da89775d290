"""Softmax attention over every key."""
