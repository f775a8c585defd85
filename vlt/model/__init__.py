"""Tensors -> tokens -> logits: the stages, the parts that compute them, and published weights."""
