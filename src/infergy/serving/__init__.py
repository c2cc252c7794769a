"""What a server does with requests: scheduler profiles, the simulation loop, the run and its latencies."""
