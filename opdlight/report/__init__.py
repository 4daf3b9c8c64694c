"""The report on one or more runs: one HTML page with figures, tables and an inspector of single tokens."""
