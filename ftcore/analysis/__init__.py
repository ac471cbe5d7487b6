"""What a model does inside, in figures and pictures."""
