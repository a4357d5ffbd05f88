"""The former path of `fastrnn.training.command_line`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.command_line import *

warn_of_move(__name__, "fastrnn.training.command_line")
