"""What a step of a server costs: its work, the seconds and joules of it, and how these are fitted to measurements."""
