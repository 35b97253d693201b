"""Tests on one plant that has shown its demo; a package, so that the plant ends with the last of them."""
