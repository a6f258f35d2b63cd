"""Renders who may do what on a site (`distree.roles`) in the form that a broker reads, one file per form."""
