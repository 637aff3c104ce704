"""Networks that a runtime computes in integers."""
