"""Plug-ins for curate, one module each; pyproject.toml names them."""
