"""Tests of one part at a time; quick, and without other programs where that is possible."""
