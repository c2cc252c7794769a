"""Engine × meter: a grid becomes a plan, a plan becomes rows. The only room where engines and meters meet."""
