"""The one way out: every call to an address that a user named."""
