"""Other libraries: our methods in captum's and Quantus' form, methods of pytorch-grad-cam and torchcam in ours."""

from ._attribution import Attribution, explain_func
from ._libraries import named, peer, peers

__all__ = ["Attribution", "explain_func", "named", "peer", "peers"]
