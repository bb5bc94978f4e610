"""Demo scans and their licences."""
