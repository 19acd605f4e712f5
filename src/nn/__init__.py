"""Code shared by the trainers: encoders, weights, sequence heads, augmentation, the training loop."""
