"""Whole flows on Ray Data: synthesize and embed."""
