"""Anything as text, as a script-free page, as a picture."""
