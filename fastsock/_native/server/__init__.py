"""The native server: the nine steps, the engines, and what they share."""
