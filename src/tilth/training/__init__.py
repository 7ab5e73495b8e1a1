"""The one training loop: `loop.fit` drives every Objective; `settings` holds what a recipe may say about it."""
