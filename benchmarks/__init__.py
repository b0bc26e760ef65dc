"""What measures us: each module prints our figure, its rivals' and the physical limit from one run."""
