"""Models, metrics and error browsing."""
