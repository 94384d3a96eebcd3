"""Takes requests for stays, and confirms or cancels them."""
