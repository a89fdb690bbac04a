"""Training: recipes, views of the images, losses, learning rates, and one step of the optimiser."""
