"""A Hugging Face directory <-> a model: configuration, weights, hub."""
