"""Models behind an address: repository, servers, gateway, prediction log, and what moves traffic between them."""
