"""Sums over query-key pairs, tile by tile: closed under jvp, transpose and vmap."""
