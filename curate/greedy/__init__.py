"""Greedy selection over embeddings: what to label next, and what is already covered."""
