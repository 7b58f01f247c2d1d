"""What runs in guests: frontends for process domains, and small guests of our own."""
