"""Training a model on Ray Train."""
