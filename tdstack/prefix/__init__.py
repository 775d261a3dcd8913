"""Environments outside images: what the layers bring, put into a prefix."""
