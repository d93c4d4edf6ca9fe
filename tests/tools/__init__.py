"""What the tests use to look at the product from outside; none of it imports the product."""
