"""φ and the losses on it: pure functions of tensors."""
