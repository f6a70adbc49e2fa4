"""The page of a report: one HTML file about one or several load runs."""
