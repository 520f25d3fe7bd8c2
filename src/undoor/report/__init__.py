"""Results as one HTML file that opens offline. Each ``write_…`` writes a result together with its page."""
