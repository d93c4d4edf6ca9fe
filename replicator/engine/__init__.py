"""What a resource does: roles, states, generations, transfer log, epochs, activity log, resync.

Pure: no module below imports asyncio, socket, os, time, random or threading. The world is given
to it as the ports of `ports.py`, and it is driven by calls.
"""
