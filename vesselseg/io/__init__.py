"""Guarded readers and the atomic writer."""
