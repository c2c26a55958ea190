"""A bus of emulated servos: Dynamixel Protocol 2.0 on a pseudo-terminal, and a MuJoCo ant that the servos move.

Written from the protocol's public description, without the vendor's library, so that a driver that works with it was
checked by somebody else's reading of the protocol.
"""
