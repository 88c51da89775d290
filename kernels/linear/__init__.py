"""Attention without a softmax: linear in the scores."""
