"""One file per schema change, numbered; never edited once released."""
