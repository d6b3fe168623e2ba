"""Pictures, pages and tables of what a captioner did."""
