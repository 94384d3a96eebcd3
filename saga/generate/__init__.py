"""The files that follow from a saga's signatures."""
