"""What is learnt from images."""
