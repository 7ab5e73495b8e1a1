"""An audit: everything the unlearning protocol can ask of a model with the data at hand, and a word on everything it cannot."""
