"""The report of a run or a sweep: figures, tables, warnings, page."""
