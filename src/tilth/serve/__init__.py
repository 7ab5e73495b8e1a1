"""A model behind OpenAI's HTTP interface, its guard before it on every path.

Notable: one thread owns the model. Requests that wait together are answered together; prompts that a guard concerns run as
batches of their own, and nothing else runs while its hooks are on the model.
"""
