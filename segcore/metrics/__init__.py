"""How good label maps are: counts, IoU, comparison of two models, charts."""
