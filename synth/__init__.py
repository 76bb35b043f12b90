"""Synthesis of scarce defects."""
