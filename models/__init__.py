"""What is true: tables, frozen values, enums with their legal moves, errors and settings. Imports nothing of ours.

Here a *model* is the relational model; a neural network is an encoder or a classifier.
"""
