"""Files and text -> tensors."""
