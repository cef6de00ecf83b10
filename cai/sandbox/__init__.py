"""The embedded sandbox: a small world in which harm is decidable, and a model that lives in it.

`words` and `grammar` make prompts and responses, `principles` words the axes, `oracle` reads text and
scores it, `corpus` writes the pre-training documents, `tokenizer` builds the tokenizer. A testbed, never
evidence about large models.
"""
