"""The scoreboard: estimators of energy, ours and published ones, compared on the same measured rows."""
