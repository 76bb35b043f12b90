"""Greedy selection over embeddings: farthest-first, coverage, typical rows, BADGE, and exact nearest neighbours.

Read `neighbours.py` first. May import the ground floor alone.
"""
