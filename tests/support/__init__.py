"""What several tests share: real processes to start, and ways to ask them."""
