"""The choreography as a graph, and what is drawn and written from it."""
