"""The contract: what every process of a host may know. Imports nothing but itself. See
hyper/public/README.md.
"""
