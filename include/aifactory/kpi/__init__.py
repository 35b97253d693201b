"""KPIs of production, pure: from events of the ledger, and of nothing else, to figures.

formulas      the ratios of ISO 22400-2 and of the books, from numbers
record        events without duplicates; what ended how, and what it was called
stations      counts, work and downtime of one station, its OEE, its load; the bottleneck
reliability   MTBF, MTTR, of the line and of the model
leadtime      from landed data to all traffic, in four parts
pareto        reasons of scrap and rework
cost          seconds, energy and money
trends        the same figures a day or week

Every function takes events in any order, and takes an event that it is given twice once (by its key).
"""
