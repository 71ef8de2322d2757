"""What was done: data, networks, training, and the recipes of papers."""
