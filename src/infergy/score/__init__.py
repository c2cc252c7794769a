"""How estimators of energy compare: rows, splits, rivals, scores."""
