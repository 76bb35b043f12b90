"""The demo plant: hot-rolled strips drawn by script and seed, so that everything can be tried without real data.

Read `plant.py` first; `steel.py` paints. May import the ground floor and `masks`.
"""
