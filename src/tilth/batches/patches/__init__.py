"""Cutting signals, pictures and volumes into patches, and choosing patches to hide."""
