"""The figures of a report: inline SVG whose colours follow the page (light or dark), and PNG pictures."""
