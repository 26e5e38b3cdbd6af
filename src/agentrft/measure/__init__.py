"""How good an agent is and how sure we are: statistics and reports."""
