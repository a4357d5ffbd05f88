"""Modules for programs that run a recurrent layer in a way of their own; each imports its package.

``import fastrnn`` imports none of them.
"""
