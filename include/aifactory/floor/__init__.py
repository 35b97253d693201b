"""What the factory floor asks of the ledger, and where it must of the store: few statements, none of them per line.

plan        what a line's spec asks of its stations, for the KPIs
history     events of one line: for the KPIs, and page by page for the panels
overview    all lines at a glance: state of champion, gates, work in progress, cost
waiting     what waits for a person, and the word that it was seen
genealogy   units of a line and what went into what
quarantined the quarantine browser

A figure that SQL sums up here is the one that `aifactory.kpi` gives for the same events; a test holds them together.
"""
