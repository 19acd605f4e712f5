"""Self-supervised pre-training by contextual position prediction: crops, losses, student and teacher,
monitors."""
