"""What a model is asked to do: losses, predictions and their measures."""
