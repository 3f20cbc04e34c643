"""What every study writes and draws with: numbers, tables, figures, styles, and marks by a bootstrap."""
