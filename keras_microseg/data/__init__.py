"""Training data: datasets, augmentation, target maps."""
