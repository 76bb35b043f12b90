"""Label Studio, both ways."""
