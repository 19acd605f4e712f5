"""Network parts that every stage shares: encoders, pooling, sequence heads, augmentation, stack datasets."""
