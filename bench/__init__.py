"""How fast the product is, beside others: `make bench`; README.md says what is compared and how."""
