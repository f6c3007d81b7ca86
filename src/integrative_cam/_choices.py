"""What can be chosen by name; plain data, so that the command's help does not load torch.

`Recipe` and the help of `icam explain` say what the names mean, `_maps` has the functions behind them.
"""

from __future__ import annotations

TAPS = {
    "activations": "the output of every nonlinearity with a spatial extent",
    "stages": "the last of them at each resolution",
    "last": "the last of them",
}
SCORES = ("contrast", "logit")
READOUTS = ("exp", "identity", "softplus", "sigmoid", "softmax", "log_softmax")
AGGREGATIONS = ("position", "channel", "active")
BIASES = ("complete", "residual", "layers", "none")
WEIGHTINGS = ("joint", "product", "average", "geometric", "uniform", "last")
FUSIONS = ("sum", "max", "geometric", "product")

DEFAULT_METHODS = ("integrative", "gradcam", "gradcam++", "hirescam", "layercam-fused")
DEFAULT_METRICS = ("insertion", "deletion", "ins-del", "drop", "increase", "area")
"""What `icam compare` and `icam evaluate` show unless told otherwise."""
NOISE_CONTROLS = ("integrative-times-noise", "gradcam-times-noise")
"""Measured by `icam evaluate` besides `DEFAULT_METHODS`: a metric that rises by noise rewards roughness."""

DEFAULT_NETWORK = "efficientnet-lite0"
TASKS = ("classification", "multi-label", "regression", "image", "fastestdet")
"""What the numbers that a network outputs can mean; see `icam explain --help`."""
PROBABILITY_TASKS = TASKS[:2]
"""Those of networks whose outputs are the logits of classes."""
