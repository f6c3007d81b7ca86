"""Arithmetic on tensors: from feature maps and gradients to one map."""
