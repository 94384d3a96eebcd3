"""What every participant shares: the published language, the choreography graph and the kernel.

Nothing in this package knows a service.
"""
