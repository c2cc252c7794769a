"""What a step of a server costs: its work, its seconds and joules, and how these are fitted to measurements."""
