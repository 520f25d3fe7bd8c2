"""Tables, figures and pages that are generated from the results in a store."""
