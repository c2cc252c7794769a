"""What LLM inference costs in joules: measured, modelled from a request trace, compared, and reduced."""
