"""The others: the same operations on the same tables, each as its users would write them."""
