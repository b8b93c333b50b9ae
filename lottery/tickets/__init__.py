"""The subject: how tickets are found, and what they are compared with."""
