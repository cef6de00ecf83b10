"""Constitutional AI as one pipeline: a constitution goes in, trained models and an honest report come out."""
