"""How queries and tokens exchange what they know. Every axis before the last two is batch."""
