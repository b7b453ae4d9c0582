"""Diagnostics as other programs want them. One format a file.

Each takes the diagnostics and `folder`, the project's folder as seen from where the reader stands: `shop/`, or "".
"""
