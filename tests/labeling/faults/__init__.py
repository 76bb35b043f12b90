"""Faults between us and a real Label Studio. After each: nothing lost, nothing doubled."""
