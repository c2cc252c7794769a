"""How far rows can be trusted, and what they say of one another: comparison, rescaling, prefill and decode."""
