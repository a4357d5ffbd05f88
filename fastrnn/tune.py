"""The former path of `fastrnn.training.tune`."""

from fastrnn._moved import warn_of_move
from fastrnn.training.tune import *

warn_of_move(__name__, "fastrnn.training.tune")
