"""What happens after the push: the served contract, clients and servers."""
