"""A report on a comparison: rows, scores, tables, pictures and pages."""
