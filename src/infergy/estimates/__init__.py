"""What a workload costs on a server: the questions that are asked of simulated runs, and their answers."""
