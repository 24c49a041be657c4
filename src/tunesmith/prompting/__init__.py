"""Prompts that are designed, not trained: what is offered, what is chosen of it, what the network says without a text, and the result as a text."""
