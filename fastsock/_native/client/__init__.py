"""The native load client."""
