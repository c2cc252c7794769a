"""A server that already runs, beside the energy counters of its GPUs: what it draws now, for each token."""
