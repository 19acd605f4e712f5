"""Self-supervised pre-training by contextual position prediction."""
