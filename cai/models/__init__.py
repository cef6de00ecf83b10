"""Language models as tensors: loading, encoding, decoding, scoring. What engines and the RL code share."""
