"""Statistics of attention weights that never materialise them."""
