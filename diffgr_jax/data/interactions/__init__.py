"""Shops: items, and what users took in turn. Here too: the format for a user's own shop."""
