"""Other libraries: our methods in captum's and Quantus' form, theirs as methods of ours."""

from ._attribution import Attribution, explain_func, signed_map, spread

__all__ = ["Attribution", "explain_func", "signed_map", "spread"]
