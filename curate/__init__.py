"""Find, label and balance the rarest surface defects."""

__version__ = "0.1.0"
