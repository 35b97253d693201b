"""Compute as inventory: what there is (`inventory`), what energy costs (`feeds`), where work goes (`placement`)."""
