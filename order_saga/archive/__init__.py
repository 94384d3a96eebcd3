"""What the archive shows of orders, beside what it shows of any subject."""
