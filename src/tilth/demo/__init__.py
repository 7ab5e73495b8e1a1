"""What the guided tour works on: text that is on every machine with Python, and people who never were."""
